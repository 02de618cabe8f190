//! The head of a GGUF file (version 3): metadata, and which tensor is where.

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

/// Types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// The upper halves of them.
    Bf16,
    /// ggml's 4 bits in blocks of 256.
    Q4K,
    /// ggml's 6 bits in blocks of 256.
    Q6K,
}

impl Kind {
    /// Values in a block, and its bytes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Bf16 => (1, 2),
            Self::Q4K => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    /// ggml's number of the type.
    const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4K => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }
}

/// A tensor: its name, type and sizes, the fastest varying first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Sizes in ggml's order: `[n_in, n_out]` for a matrix.
    pub dims: Vec<u64>,
    /// Type of its values; the first size must be whole blocks of it.
    pub kind: Kind,
}

impl Tensor {
    /// Values in it.
    #[must_use]
    pub fn n_values(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of its values, without what aligns the next tensor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let (values, bytes) = self.kind.block();
        self.n_values() / values as u64 * bytes as u64
    }

    /// Bytes that it takes in a file.
    #[must_use]
    pub fn padded_bytes(&self) -> u64 {
        self.bytes().next_multiple_of(ALIGNMENT)
    }
}

/// Tensors begin at multiples of so many bytes: what the format takes where a file does
/// not say.
const ALIGNMENT: u64 = 32;

/// Everything before the values of the first tensor. They follow in the order of
/// `tensors`, each filled up to [`Tensor::padded_bytes`].
#[must_use]
pub fn head(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
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
        head.extend(tensor.kind.number().to_le_bytes());
        head.extend(u64::to_le_bytes(offset));
        offset += tensor.padded_bytes();
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    head
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
