//! Asking questions about a context.

use crate::{Env, Prompt};
use kiv_runtime::{Error, GenerateOptions, Outputs, Sampling, Session};
use serde::Serialize;

/// Most tokens of an answer.
const ANSWER: usize = 16;

/// A question, its right answer and the model's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answered {
    /// Where the answer is in the context, in percent, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The right answer.
    pub expected: String,
    /// The model's.
    pub got: String,
    /// Whether it is right.
    pub pass: bool,
}

/// A session that has read the prompt's context.
pub(crate) fn read(env: &Env<'_>, policy: &str, prompt: &Prompt) -> Result<Session, Error> {
    let tokens = env.model.tokenize(&prompt.context, true);
    let question = |q: &crate::Question| env.model.tokenize(&q.text, false).len();
    let asked = prompt.questions.iter().map(question).max().unwrap_or(0);
    let after = env.model.tokenize(&prompt.continuation, false).len();
    let mut session =
        (env.builder)(policy, tokens.len() + ANSWER + asked.max(after) + 1).build()?;
    let n = tokens.len();
    session.read_with(
        &tokens,
        Outputs::Last,
        |_, _| {},
        |p| (env.progress)(policy, n, p),
    )?;
    Ok(session)
}

/// Asks all questions of one prompt.
pub(crate) fn judge(env: &Env<'_>, policy: &str, prompt: &Prompt) -> Result<Vec<Answered>, Error> {
    let mut session = read(env, policy, prompt)?;
    let n = session.tokens().len();
    let mut answers = Vec::new();
    for question in &prompt.questions {
        session.read_one_by_one(&env.model.tokenize(&question.text, false))?;
        let options = GenerateOptions {
            max_tokens: Some(ANSWER),
            sampling: Sampling::greedy(),
            stop: vec!["\n".to_owned()],
            ..GenerateOptions::default()
        };
        let mut got = String::new();
        let mut stream = session.generate(options);
        for piece in &mut stream {
            got += &piece?.text;
        }
        got += &stream.rest();
        session.truncate(n)?;
        answers.push(Answered {
            depth: question.depth_ppm.map(|d| f64::from(d) / 1e4),
            expected: question.check.expected().to_owned(),
            pass: question.check.passes(&got),
            got,
        });
    }
    Ok(answers)
}
