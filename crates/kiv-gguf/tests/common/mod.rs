//! Small GGUF files, made with gguf-rs' writer.

// Every test binary has its own copy, and uses its own part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use gguf_rs::writer::{GGUFWriter, MetadataValue, TensorInfo};
use kiv_gguf::{GgufError, ModelFile};

/// A key and its value; keys that begin with a dot get the architecture before
/// them.
pub type Key<'a> = (&'a str, MetadataValue);

pub fn u(value: u32) -> MetadataValue {
    MetadataValue::Uint32(value)
}

pub fn list(values: &[u32]) -> MetadataValue {
    MetadataValue::Array(values.iter().map(|v| u(*v)).collect())
}

pub fn flags(values: &[bool]) -> MetadataValue {
    MetadataValue::Array(values.iter().map(|v| MetadataValue::Bool(*v)).collect())
}

/// Path of the bundled model.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-f16.gguf")
}

/// Writes a model of 4 heads and 64 values, with one tensor per entry of
/// `tensors`: name, shape, ggml type. `keys` override the defaults.
pub fn write(path: &Path, arch: &str, keys: &[Key], tensors: &[(&str, &[u64], u32)]) {
    let mut writer = GGUFWriter::new(path, 3).unwrap();
    writer.add_metadata("general.architecture", arch);
    let mut add = |key: &str, value: &MetadataValue| {
        let key = if key.starts_with('.') {
            format!("{arch}{key}")
        } else {
            key.to_owned()
        };
        match value {
            MetadataValue::Uint32(v) => writer.add_metadata_u32(&key, *v),
            MetadataValue::Float32(v) => writer.add_metadata_f32(&key, *v),
            MetadataValue::Bool(v) => writer.add_metadata_bool(&key, *v),
            MetadataValue::String(v) => writer.add_metadata(&key, v),
            MetadataValue::Array(v) => writer.add_metadata_array(&key, v.clone()),
            other => panic!("not needed here: {other:?}"),
        }
    };
    add(".context_length", &u(8192));
    add(".embedding_length", &u(64));
    add(".feed_forward_length", &u(256));
    add(".attention.head_count", &u(4));
    add(".attention.head_count_kv", &u(2));
    add(".block_count", &u(4));
    for (key, value) in keys {
        add(key, value);
    }
    for (name, shape, dtype) in tensors {
        writer.add_tensor(TensorInfo {
            name: (*name).into(),
            shape: shape.to_vec(),
            dtype: *dtype,
        });
    }
    writer.write().unwrap();
    writer.finalize().unwrap();
}

/// Opens a model of this architecture and these keys.
pub fn open(arch: &str, keys: &[Key]) -> Result<ModelFile, GgufError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(&path, arch, keys, &[("token_embd.weight", &[64, 100], 1)]);
    ModelFile::open(path)
}
