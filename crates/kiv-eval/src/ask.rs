//! Asking questions about a context.

use crate::{Contender, Env, Prompt, Question, Sizes};
use kiv_policy::Policy;
use kiv_runtime::{Error, Finish, GenerateOptions, Outputs, Sampling, Session, Token};
use serde::Serialize;
use std::sync::Arc;

/// A question, its right answer and the model's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answered {
    /// Where the answer is in the context, in percent, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// How large the task is, where it has sizes.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// The right answer.
    pub expected: String,
    /// The model's.
    pub got: String,
    /// Whether it is right.
    pub pass: bool,
}

/// A session that has read a prompt's context, and is asked one thing after
/// another as if each were the first.
pub(crate) struct Reader<'a> {
    env: &'a Env<'a>,
    contender: Contender,
    pub prompt: &'a Prompt,
    context: Vec<Token>,
    /// Most tokens of a question and its answer.
    room: usize,
    /// `None` while the context is read again.
    session: Option<Session>,
    /// Whether questions can be taken back. Not if the window is shorter than
    /// they are: then the context is read again for each.
    can_rewind: bool,
}

fn by_name(name: &str) -> Result<Box<dyn Policy>, Error> {
    let unknown = || Error::UnknownPolicy {
        name: name.to_owned(),
    };
    kiv_policies::by_name(name).ok_or_else(unknown)
}

impl<'a> Reader<'a> {
    /// Reads the context.
    pub fn open(
        env: &'a Env<'a>,
        contender: &Contender,
        prompt: &'a Prompt,
    ) -> Result<Self, Error> {
        let room = |q: &Question| env.model.tokenize(&q.text, false).len() + q.answer_tokens;
        let mut reader = Self {
            env,
            contender: contender.reader(),
            prompt,
            context: env.model.tokenize(&prompt.context, true),
            room: prompt.questions.iter().map(room).max().unwrap_or(1),
            session: None,
            can_rewind: true,
        };
        // Room is made for the longest question before the first is asked:
        // what leaves the window for it has left it for every question. (So
        // the session does not depend on which questions are asked, nor on
        // their order.)
        let mut session = reader.read()?;
        let filler = reader.context.iter().copied().cycle().take(reader.room);
        session.read(&filler.collect::<Vec<_>>())?;
        match session.rewind(reader.context.len()) {
            Ok(()) => reader.session = Some(session),
            Err(Error::TruncateTooFar { .. } | Error::CannotTruncate) => {
                reader.can_rewind = false;
            }
            Err(error) => return Err(error),
        }
        reader.pass_to(contender)?;
        Ok(reader)
    }

    /// From now on this contender answers about what has been read for it.
    pub fn pass_to(&mut self, contender: &Contender) -> Result<(), Error> {
        if self.contender.policy != contender.policy
            && let Some(session) = &mut self.session
        {
            session.set_policy(by_name(&contender.policy)?)?;
        }
        self.contender = contender.clone();
        Ok(())
    }

    fn read(&self) -> Result<Session, Error> {
        let n = self.context.len();
        let after = self.env.model.tokenize(&self.prompt.continuation, false);
        let n_tokens = n + self.room.max(after.len()) + 1;
        let reader = self.contender.reader();
        let mut session = (self.env.builder)(&reader, n_tokens).build()?;
        session.set_interrupt_flag(Arc::clone(&self.env.interrupt));
        session.read_with(
            &self.context,
            Outputs::Last,
            |_, _| {},
            |p| (self.env.progress)(&reader, n, p),
        )?;
        session.mark()?;
        if reader.policy != self.contender.policy {
            session.set_policy(by_name(&self.contender.policy)?)?;
        }
        Ok(session)
    }

    /// The session right after the context.
    pub fn bare(&mut self) -> Result<&mut Session, Error> {
        let session = match self.session.take() {
            Some(mut session) if self.can_rewind => {
                session.rewind(self.context.len())?;
                session
            }
            // Two at a time would take twice the memory.
            spent => {
                drop(spent);
                self.read()?
            }
        };
        Ok(self.session.insert(session))
    }

    /// Tokens of a text that follows the context.
    pub fn tokenize(&self, text: &str) -> Vec<Token> {
        self.env.model.tokenize(text, false)
    }

    /// Asks one question.
    pub fn ask(&mut self, question: &Question) -> Result<Answered, Error> {
        let text = self.tokenize(&question.text);
        let session = self.bare()?;
        session.read_one_by_one(&text)?;
        let stop = if question.check.expected().contains('\n') {
            Vec::new()
        } else {
            vec!["\n".to_owned()]
        };
        let mut stream = session.generate(GenerateOptions {
            max_tokens: Some(question.answer_tokens),
            sampling: Sampling::greedy(),
            stop,
            ..GenerateOptions::default()
        });
        let mut got = String::new();
        for piece in &mut stream {
            got += &piece?.text;
        }
        got += &stream.rest();
        if stream.finish() == Some(Finish::Interrupted) {
            // Half an answer is not judged.
            return Err(Error::Interrupted {
                read: stream.generated(),
                total: question.answer_tokens,
            });
        }
        Ok(Answered {
            depth: question.depth_ppm.map(|d| f64::from(d) / 1e4),
            sizes: question.sizes,
            expected: question.check.expected().to_owned(),
            pass: question.check.passes(&got),
            got,
        })
    }
}
