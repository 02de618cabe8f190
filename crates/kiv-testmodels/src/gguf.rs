//! Writing GGUF files (version 3), with f32 tensors only.

use std::io::{self, Write};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned number.
    U32(u32),
    /// A float.
    F32(f32),
    /// A flag.
    Bool(bool),
    /// A text.
    Str(String),
    /// Numbers, one per layer usually.
    I32s(Vec<i32>),
    /// Floats.
    F32s(Vec<f32>),
    /// Flags, one per layer usually.
    Bools(Vec<bool>),
    /// Texts.
    Strs(Vec<String>),
}

/// A tensor: its name and sizes, the fastest varying first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Sizes in ggml's order: `[n_in, n_out]` for a matrix.
    pub dims: Vec<u64>,
}

impl Tensor {
    /// Values in it.
    pub fn n_values(&self) -> u64 {
        self.dims.iter().product()
    }
}

const ALIGNMENT: u64 = 32;

/// Writes a file of `tensors`, the values of each as `values` gives them.
///
/// # Errors
/// What `out` fails with.
pub fn write(
    out: &mut impl Write,
    metadata: &[(String, Value)],
    tensors: &[Tensor],
    mut values: impl FnMut(&Tensor) -> Vec<f32>,
) -> io::Result<()> {
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut head, key);
        put_value(&mut head, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut head, &tensor.name);
        head.extend((tensor.dims.len() as u32).to_le_bytes());
        for dim in &tensor.dims {
            head.extend(dim.to_le_bytes());
        }
        head.extend(0u32.to_le_bytes()); // f32
        head.extend(u64::to_le_bytes(offset));
        offset = (offset + 4 * tensor.n_values()).next_multiple_of(ALIGNMENT);
    }
    pad(&mut head);
    out.write_all(&head)?;
    for tensor in tensors {
        let mut bytes: Vec<u8> = values(tensor)
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        pad(&mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// GGUF's number of a type.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn put_value(to: &mut Vec<u8>, value: &Value) {
    let mut head = |kind: u32, items: Option<usize>| {
        if let Some(n) = items {
            to.extend(ARRAY.to_le_bytes());
            to.extend(kind.to_le_bytes());
            to.extend((n as u64).to_le_bytes());
        } else {
            to.extend(kind.to_le_bytes());
        }
    };
    match value {
        Value::U32(v) => {
            head(U32, None);
            to.extend(v.to_le_bytes());
        }
        Value::F32(v) => {
            head(F32, None);
            to.extend(v.to_le_bytes());
        }
        Value::Bool(v) => {
            head(BOOL, None);
            to.push(u8::from(*v));
        }
        Value::Str(v) => {
            head(STRING, None);
            text(to, v);
        }
        Value::I32s(v) => {
            head(I32, Some(v.len()));
            to.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        }
        Value::F32s(v) => {
            head(F32, Some(v.len()));
            to.extend(v.iter().flat_map(|v| v.to_le_bytes()));
        }
        Value::Bools(v) => {
            head(BOOL, Some(v.len()));
            to.extend(v.iter().map(|v| u8::from(*v)));
        }
        Value::Strs(v) => {
            head(STRING, Some(v.len()));
            v.iter().for_each(|v| text(to, v));
        }
    }
}
