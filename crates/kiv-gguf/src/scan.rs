//! One pass over a GGUF's header that believes nothing.
//!
//! gguf-rs decodes the metadata, but allocates what a length field asks for
//! before it reads, keeps arrays of any size, panics on tensor type 40 and
//! refuses newer ones. So every length is checked here first, against the
//! file's size and against limits, and gguf-rs then sees the key-value section
//! alone, under a header that announces no tensors. The tensor table is read
//! here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use gguf_rs::{ByteOrder, GGUFContainer};
use serde_json::Value;

use crate::error::GgufError;
use crate::{sniff, tensor_type};

/// Metadata of one file, by key.
pub(crate) type Metadata = BTreeMap<String, Value>;

/// Longest key or tensor name, in bytes (the format's own limit for keys).
const MAX_NAME: u64 = 65_535;
/// Longest string, in bytes. Chat templates reach some 100 KB.
const MAX_STRING: u64 = 64 << 20;
/// Bytes of keys and values that are kept in memory (vocabularies are not).
const MAX_KEPT: u64 = 256 << 20;
/// Elements of kept arrays, each of which becomes a JSON value.
const MAX_KEPT_ELEMENTS: u64 = 1 << 20;
/// Keys and tensors in one file; DeepSeek-sized models have some 2,000.
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

const TYPE_U32: u32 = 4;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// What one file's header adds up to.
#[derive(Debug)]
pub(crate) struct Header {
    /// Key-value pairs.
    pub metadata: Metadata,
    /// Entries of `tokenizer.ggml.tokens`, which is not kept itself.
    pub n_tokens: Option<u64>,
    /// Rows of `token_embd.weight`.
    pub embedding_rows: Option<u64>,
    /// Tensors in this file.
    pub n_tensors: u64,
    /// Values in all tensors.
    pub n_params: u64,
    /// Bytes of all tensors, without padding.
    pub weights_bytes: u64,
    /// Type that holds most of the bytes.
    pub main_type: Option<&'static str>,
}

/// Reads and checks the header of the file at `path`.
pub(crate) fn scan(path: &Path) -> Result<Header, GgufError> {
    let io = |source| GgufError::Io {
        path: path.into(),
        source,
    };
    let info = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => GgufError::NotFound { path: path.into() },
        _ => io(source),
    })?;
    if !info.is_file() {
        let what = if info.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        };
        return Err(GgufError::NotAFile {
            path: path.into(),
            what,
        });
    }
    if info.len() == 0 {
        return Err(GgufError::Empty { path: path.into() });
    }
    let mut scanner = Scanner {
        path,
        reader: BufReader::new(File::open(path).map_err(io)?),
        pos: 0,
        len: info.len(),
        kept: 0,
        kept_elements: 0,
    };
    scanner.magic()?;
    scanner.header()
}

struct Scanner<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    /// Bytes consumed so far.
    pos: u64,
    /// Bytes in the file.
    len: u64,
    /// Bytes of keys and strings that gguf-rs will keep.
    kept: u64,
    /// Array elements that gguf-rs will keep.
    kept_elements: u64,
}

impl Scanner<'_> {
    fn magic(&mut self) -> Result<(), GgufError> {
        let mut first = [0; 64];
        let n = usize::try_from(self.len)
            .unwrap_or(usize::MAX)
            .min(first.len());
        let first = &mut first[..n];
        self.reader.read_exact(first).map_err(|e| self.io(e))?;
        if !first.starts_with(b"GGUF") {
            let path = self.path.into();
            return Err(if first.starts_with(b"FUGG") {
                GgufError::BigEndian { path }
            } else {
                let (first, hint) = (sniff::readable(first), sniff::hint(first));
                GgufError::NotGguf { path, first, hint }
            });
        }
        self.reader
            .seek(SeekFrom::Start(4))
            .map_err(|e| self.io(e))?;
        self.pos = 4;
        Ok(())
    }

    fn header(mut self) -> Result<Header, GgufError> {
        let version = self.u32()?;
        if version != 0 && version & 0xffff == 0 {
            return Err(GgufError::BigEndian {
                path: self.path.into(),
            });
        }
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version {
                path: self.path.into(),
                version,
            });
        }
        let n_tensors = self.u64()?;
        let n_keys = self.u64()?;
        if n_tensors > MAX_TENSORS || n_keys > MAX_KEYS {
            return Err(self.bad(format!("{n_tensors} tensors and {n_keys} keys")));
        }

        let keys_start = self.pos;
        let mut alignment = DEFAULT_ALIGNMENT;
        let mut n_tokens = None;
        for _ in 0..n_keys {
            let key = self.string(MAX_NAME)?;
            self.keep(key.len() as u64)?;
            let kind = self.u32()?;
            match kind {
                TYPE_U32 if key == "general.alignment" => {
                    alignment = u64::from(self.u32()?);
                    if !alignment.is_power_of_two() {
                        return Err(self.bad(format!("alignment {alignment}")));
                    }
                }
                TYPE_ARRAY => {
                    let len = self.array(&key)?;
                    if key == "tokenizer.ggml.tokens" {
                        n_tokens = Some(len);
                    }
                }
                TYPE_STRING => {
                    let len = self.u64()?;
                    self.check_string(&key, len)?;
                    self.keep(len)?;
                    self.skip(len)?;
                }
                kind => {
                    let size = self.scalar_size(&key, kind)?;
                    self.skip(size)?;
                }
            }
        }
        let keys_end = self.pos;

        let mut header = Header {
            metadata: Metadata::new(),
            n_tokens,
            embedding_rows: None,
            n_tensors,
            n_params: 0,
            weights_bytes: 0,
            main_type: None,
        };
        let mut data_len = 0;
        let mut by_type = BTreeMap::<&str, u64>::new();
        for _ in 0..n_tensors {
            let end = self.tensor(&mut header, &mut by_type, alignment)?;
            data_len = data_len.max(end);
        }
        header.main_type = by_type
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .map(|(t, _)| t);
        if n_tensors > 0 {
            // Saturating: the sum is only compared with the file's length.
            let needs = self
                .pos
                .next_multiple_of(alignment)
                .saturating_add(data_len);
            if needs > self.len {
                return Err(GgufError::TruncatedData {
                    path: self.path.into(),
                    has: self.len,
                    needs,
                });
            }
        }
        header.metadata = self.metadata(version, n_keys, keys_start, keys_end)?;
        Ok(header)
    }

    /// Reads one entry of the tensor table; returns the end of its data,
    /// counted from the start of the data section.
    fn tensor(
        &mut self,
        header: &mut Header,
        by_type: &mut BTreeMap<&'static str, u64>,
        alignment: u64,
    ) -> Result<u64, GgufError> {
        let name = self.string(MAX_NAME)?;
        let n_dims = self.u32()?;
        if n_dims > MAX_DIMS {
            return Err(self.bad(format!("tensor {name} has {n_dims} dimensions")));
        }
        let mut shape = [1u64; MAX_DIMS as usize];
        for dim in shape.iter_mut().take(n_dims as usize) {
            *dim = self.u64()?;
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some((block_len, block_bytes, type_name)) = tensor_type::block(kind) else {
            return Err(GgufError::TensorType {
                path: self.path.into(),
                tensor: name,
                kind,
            });
        };
        let values = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = values
            .filter(|_| shape[0].is_multiple_of(block_len))
            .and_then(|n| (n / block_len).checked_mul(block_bytes));
        let (Some(values), Some(bytes)) = (values, bytes) else {
            return Err(self.bad(format!("tensor {name} ({type_name}) has shape {shape:?}")));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(self.bad(format!("tensor {name} is at unaligned offset {offset}")));
        }
        let sums = offset
            .checked_add(bytes)
            .zip(header.n_params.checked_add(values))
            .zip(header.weights_bytes.checked_add(bytes));
        let Some(((end, n_params), weights_bytes)) = sums else {
            return Err(self.bad(format!(
                "tensor {name} ends past the last byte there can be"
            )));
        };
        header.n_params = n_params;
        header.weights_bytes = weights_bytes;
        *by_type.entry(type_name).or_default() += bytes;
        if name == "token_embd.weight" {
            header.embedding_rows = Some(shape[1]);
        }
        Ok(end)
    }

    /// Checks an array and steps over it; returns its length.
    fn array(&mut self, key: &str) -> Result<u64, GgufError> {
        let kind = self.u32()?;
        let len = self.u64()?;
        // gguf-rs drops the elements of vocabulary arrays and keeps the others.
        let kept = !key.starts_with("tokenizer.");
        if kept {
            self.kept_elements = self.kept_elements.saturating_add(len);
            if self.kept_elements > MAX_KEPT_ELEMENTS {
                return Err(self.bad(format!("key {key} has {len} elements")));
            }
        }
        if kind == TYPE_STRING {
            for _ in 0..len {
                let bytes = self.u64()?;
                self.check_string(key, bytes)?;
                if kept {
                    self.keep(bytes)?;
                }
                self.skip(bytes)?;
            }
        } else {
            let size = self.scalar_size(key, kind)?;
            self.skip(len.saturating_mul(size))?;
        }
        Ok(len)
    }

    /// Lets gguf-rs decode the key-value section, which has been checked.
    fn metadata(
        &self,
        version: u32,
        n_keys: u64,
        start: u64,
        end: u64,
    ) -> Result<Metadata, GgufError> {
        let mut head = Vec::with_capacity(20);
        head.extend(version.to_le_bytes());
        head.extend(0u64.to_le_bytes());
        head.extend(n_keys.to_le_bytes());
        let mut file = File::open(self.path).map_err(|e| self.io(e))?;
        file.seek(SeekFrom::Start(start)).map_err(|e| self.io(e))?;
        let keys = BufReader::new(file).take(end - start);
        let reader = Box::new(Cursor::new(head).chain(keys));
        let model = GGUFContainer::new(ByteOrder::LE, reader, 0)
            .decode()
            .map_err(|error| self.bad(error.to_string()))?;
        Ok(model.metadata().clone())
    }

    /// Bytes of a value that is neither a string nor an array.
    fn scalar_size(&self, key: &str, kind: u32) -> Result<u64, GgufError> {
        Ok(match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(self.bad(format!("key {key} has value type {kind}"))),
        })
    }

    fn keep(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.kept = self.kept.saturating_add(bytes);
        if self.kept > MAX_KEPT {
            return Err(self.bad(format!("more than {MAX_KEPT} bytes of metadata")));
        }
        Ok(())
    }

    fn check_string(&self, what: &str, len: u64) -> Result<(), GgufError> {
        if len > MAX_STRING && len <= self.len - self.pos {
            return Err(self.bad(format!("{what} is a string of {len} bytes")));
        }
        Ok(())
    }

    fn string(&mut self, max: u64) -> Result<String, GgufError> {
        let len = self.u64()?;
        self.fits(len)?;
        if len > max {
            return Err(self.bad(format!("a name of {len} bytes at byte {}", self.pos)));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.fits(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|e| self.io(e))?;
        self.pos += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, n: u64) -> Result<(), GgufError> {
        self.fits(n)?;
        // At most the file's length, which the system gave as a signed number.
        self.reader
            .seek_relative(n.cast_signed())
            .map_err(|e| self.io(e))?;
        self.pos += n;
        Ok(())
    }

    /// Whether `n` more bytes are in the file.
    fn fits(&self, n: u64) -> Result<(), GgufError> {
        if n > self.len - self.pos {
            return Err(GgufError::TruncatedHeader {
                path: self.path.into(),
                has: self.len,
            });
        }
        Ok(())
    }

    fn io(&self, source: io::Error) -> GgufError {
        let path = self.path.into();
        // The file shrank while it was read.
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return GgufError::TruncatedHeader {
                path,
                has: self.len,
            };
        }
        GgufError::Io { path, source }
    }

    fn bad(&self, detail: String) -> GgufError {
        GgufError::BadHeader {
            path: self.path.into(),
            detail,
        }
    }
}
