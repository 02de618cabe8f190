//! A vocabulary of bytes, in sentencepiece's manner.

use kiv_synthetic::gguf::Value;

/// Tokens: unknown, begin, end, every byte, and the space mark.
pub const N_VOCAB: u64 = 3 + 256 + 1;

/// The `tokenizer.*` metadata.
pub fn metadata() -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    // llama.cpp's kinds: 1 a plain token, 2 unknown, 3 control, 6 a byte.
    let mut kinds = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([6; 256]);
    tokens.push("\u{2581}".to_owned());
    kinds.push(1);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let key = |suffix: &str| format!("tokenizer.ggml.{suffix}");
    vec![
        (key("model"), Value::Str("llama".to_owned())),
        (key("pre"), Value::Str("default".to_owned())),
        (key("tokens"), Value::Strs(tokens)),
        (key("scores"), Value::F32s(scores)),
        (key("token_type"), Value::I32s(kinds)),
        (key("bos_token_id"), Value::U32(1)),
        (key("eos_token_id"), Value::U32(2)),
        (key("unknown_token_id"), Value::U32(0)),
    ]
}
