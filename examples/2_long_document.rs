//! Read a text far longer than the resident cache, then ask about it.
//!
//! The text is read in micro-batches (`read_with`); the question is read token
//! by token (`read_one_by_one`), so that each of its tokens looks up the past.
//!
//! ```sh
//! cargo run --release --example 2_long_document
//! ```

use kiv::{GenerateOptions, Model, Outputs, Sampling};
use kiv_haystack::{Haystack, HaystackSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("models/tiny-f16.gguf")?;

    // 20,000 tokens of prose with three facts in it.
    let spec = HaystackSpec::new(5, 20_000, vec![0.1, 0.5, 0.9]);
    let document = Haystack::build(&spec, &mut |text| model.tokenize(text, false).len())?;

    // 2 K tokens resident for 20 K tokens of text.
    let mut session = model
        .session()
        .policy("exact")
        .window(512)
        .budget(512)
        .build()?;
    let tokens = model.tokenize(&document.text, true);
    session.read_with(
        &tokens,
        Outputs::Last,
        |_, _| {},
        |progress| {
            eprint!("\rread {} of {} tokens", progress.read, progress.total);
        },
    )?;
    eprintln!();

    // Models with sliding windows or recurrent layers could not come back else.
    session.mark()?;
    let end = session.tokens().len();
    for placed in &document.needles {
        let needle = &placed.needle;
        session.read_one_by_one(&model.tokenize(&needle.question, false))?;
        let options = GenerateOptions {
            max_tokens: Some(6),
            sampling: Sampling::greedy(),
            ..GenerateOptions::default()
        };
        let mut answer = String::new();
        for piece in session.generate(options) {
            answer += &piece?.text;
        }
        println!(
            "{}: {} (the text says {})",
            needle.name,
            answer.trim(),
            needle.code
        );
        // Back to the end of the document for the next question.
        session.truncate(end)?;
    }
    let memory = session.memory();
    println!(
        "KV cache: {} bytes resident, {} bytes in host RAM",
        memory.resident_kv, memory.host_kv
    );
    Ok(())
}
