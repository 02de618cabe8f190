//! Continue a prompt.
//!
//! ```sh
//! cargo run --release --example 1_generate -- models/tiny-f16.gguf "Once upon a time"
//! ```

use kiv::{GenerateOptions, Model};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args
        .next()
        .unwrap_or_else(|| "models/tiny-f16.gguf".to_owned());
    let prompt = args.next().unwrap_or_else(|| "In the beginning".to_owned());

    let model = Model::load(path)?;
    let mut session = model.session().build()?;
    session.read(&model.tokenize(&prompt, true))?;

    print!("{prompt}");
    for piece in session.generate(GenerateOptions::default()) {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
