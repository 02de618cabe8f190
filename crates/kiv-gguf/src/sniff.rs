//! What a file that is not a GGUF looks like instead.

/// First bytes in a readable way: `"PK\x03\x04"`.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let n = bytes.len().min(8);
    format!("\"{}\"", bytes[..n].escape_ascii())
}

/// What the bytes look like, and what to do.
pub(crate) fn hint(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii_start();
    let lower = text.to_ascii_lowercase();
    if bytes.starts_with(b"PK") {
        "a zip archive, perhaps a PyTorch checkpoint: convert the model with llama.cpp's convert_hf_to_gguf.py"
    } else if matches!(bytes, [0x80, 2..=5, ..]) {
        "a Python pickle, perhaps a PyTorch checkpoint: convert the model with llama.cpp's convert_hf_to_gguf.py"
    } else if bytes.len() > 8 && bytes[8] == b'{' {
        "a safetensors file: convert the model with llama.cpp's convert_hf_to_gguf.py"
    } else if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") {
        "a web page, so the download failed: use the link of the file itself"
    } else if text.starts_with(b"<") {
        "an XML answer, so the download failed: use the link of the file itself"
    } else if text.starts_with(b"version https://git-lfs") {
        "a Git LFS pointer instead of the file: run git lfs pull"
    } else if text.starts_with(b"{") {
        "a JSON file: name the .gguf file"
    } else if [&b"lmgg"[..], b"fmgg", b"tjgg", b"algg"]
        .iter()
        .any(|m| bytes.starts_with(m))
    {
        "a GGML file from before GGUF: get a newer conversion of this model"
    } else if bytes.starts_with(b"\x1f\x8b") || bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        "a compressed file: unpack it first"
    } else if bytes.starts_with(b"\x89HDF") {
        "an HDF5 file: convert the model to GGUF first"
    } else if bytes.iter().all(|b| *b == 0) {
        "zeros, so the download has not finished: download it again"
    } else {
        "name a .gguf file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_named() {
        for (bytes, word) in [
            (&b"PK\x03\x04rest"[..], "zip"),
            (b"\x80\x02}q\x00", "pickle"),
            (b"\x10\x00\x00\x00\x00\x00\x00\x00{\"__", "safetensors"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"\n<HTML>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1", "LFS"),
            (b"{\"model\"", "JSON"),
            (b"tjgg\x01\0\0\0", "before GGUF"),
            (b"\0\0\0\0", "finished"),
            (b"hello", ".gguf"),
            (b"G", ".gguf"),
        ] {
            assert!(hint(bytes).contains(word), "{bytes:?}: {}", hint(bytes));
        }
        assert_eq!(readable(b"PK\x03\x04"), r#""PK\x03\x04""#);
    }
}
