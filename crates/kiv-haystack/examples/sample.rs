//! Prints paragraphs: `cargo run -p kiv-haystack --example sample [SEED [N]]`.

use kiv_haystack::Prose;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let seed = args.next().and_then(Result::ok).unwrap_or(0);
    let n = args.next().and_then(Result::ok).unwrap_or(5);
    for paragraph in Prose::new(seed).take(n as usize) {
        println!("{paragraph}\n");
    }
}
