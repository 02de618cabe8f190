//! A vocabulary of any size: bytes, and tokens that are made up.

use crate::gguf::Value;

/// Tokens that every vocabulary has: bytes, one that a merge makes, begin and end.
pub(crate) const FEWEST: u64 = 256 + 1 + 2;

/// The `tokenizer.*` metadata of `n` tokens, at least [`FEWEST`].
pub(crate) fn metadata(n: u64) -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    // llama.cpp wants merges: one is enough.
    let merged: String = [letter(b' '), letter(b't')].iter().collect();
    tokens.push(merged);
    let made_up = n.saturating_sub(FEWEST);
    tokens.extend((0..made_up).map(|i| format!("{}w{i}", letter(b' '))));
    let begin = tokens.len() as u32;
    tokens.extend(["<|begin|>", "<|end|>"].map(str::to_owned));
    // llama.cpp's kinds: 1 a plain token, 3 control.
    let mut kinds = vec![1; tokens.len()];
    kinds[begin as usize..].fill(3);
    let key = |suffix: &str| format!("tokenizer.ggml.{suffix}");
    let merge = format!("{} {}", letter(b' '), letter(b't'));
    vec![
        (key("model"), Value::Str("gpt2".to_owned())),
        (key("pre"), Value::Str("llama-bpe".to_owned())),
        (key("tokens"), Value::Strs(tokens)),
        (key("token_type"), Value::I32s(kinds)),
        (key("merges"), Value::Strs(vec![merge])),
        (key("bos_token_id"), Value::U32(begin)),
        (key("eos_token_id"), Value::U32(begin + 1)),
    ]
}

/// The letter that stands for a byte in vocabularies of GPT-2's kind: itself where it
/// can be seen, otherwise the next one from U+0100 on.
fn letter(byte: u8) -> char {
    let is_seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_seen(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !is_seen(*b)).count();
    char::from_u32(0x100 + before as u32).unwrap_or('?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_has_the_size_asked_for_and_no_token_twice() {
        for n in [FEWEST, 1000] {
            let metadata = metadata(n);
            let Value::Strs(tokens) = &metadata[2].1 else {
                panic!("{metadata:?}");
            };
            assert_eq!(tokens.len() as u64, n);
            let distinct: std::collections::HashSet<_> = tokens.iter().collect();
            assert_eq!(distinct.len() as u64, n);
        }
        assert_eq!([letter(b'a'), letter(b' '), letter(0xFF)], ['a', 'Ġ', 'ÿ']);
    }
}
