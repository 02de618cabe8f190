//! The manifest: what a context is, and which files its last commit consists of.

use crate::error::ContextError;
use kiv_policy::{Geometry, LayerGeometry, RowFormat};
use kiv_wire::{Put, Take, WireError};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// First bytes of a part's file.
const PART_MAGIC: [u8; 8] = *b"KIVPART\n";

/// Bytes before a part's own.
pub(crate) const PART_HEADER: usize = 32;

/// Version of the format that is written.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"KIVCTX\r\n";

/// What a context belongs to. Another process must have the same to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Hash of the model's file.
    pub model: [u8; 32],
    /// The model in words, for messages.
    pub model_name: String,
    /// Tiered layers.
    pub layers: Vec<LayerGeometry>,
    /// Tokens in a block.
    pub block: usize,
    /// Position of the first token of block 0.
    pub first_position: usize,
    /// Type of K rows.
    pub key_format: RowFormat,
    /// Type of V rows.
    pub value_format: RowFormat,
    /// Whatever else must be equal, as (flag, value).
    pub settings: Vec<(String, String)>,
}

impl Identity {
    /// Of a model under a geometry.
    #[must_use]
    pub fn new(
        model: [u8; 32],
        model_name: String,
        geometry: &Geometry,
        settings: Vec<(String, String)>,
    ) -> Self {
        Self {
            model,
            model_name,
            layers: geometry.layers.clone(),
            block: geometry.block,
            first_position: geometry.first_position,
            key_format: geometry.key_format,
            value_format: geometry.value_format,
            settings,
        }
    }

    /// Whether a context of this identity, in `folder`, can go on under `given`.
    ///
    /// # Errors
    /// [`ContextError`] with what is different.
    pub fn check(&self, given: &Self, folder: &Path) -> Result<(), ContextError> {
        let path = || folder.to_owned();
        if self.model != given.model || self.layers != given.layers {
            return Err(ContextError::OtherModel {
                path: path(),
                stored: self.model_name.clone(),
                given: given.model_name.clone(),
            });
        }
        let own = |it: &Self| {
            let mut settings = vec![
                ("--kv-block".to_owned(), it.block.to_string()),
                ("--kv-sinks".to_owned(), it.first_position.to_string()),
                (
                    "--kv-store".to_owned(),
                    format!("{},{}", it.key_format, it.value_format),
                ),
            ];
            settings.extend(it.settings.clone());
            settings
        };
        let (stored, given) = (own(self), own(given));
        let value_in = |settings: &[(String, String)], key: &str| {
            let setting = settings.iter().find(|(k, _)| k == key);
            setting.map_or("at its default".to_owned(), |(_, v)| v.clone())
        };
        for (key, _) in stored.iter().chain(&given) {
            let (stored, given) = (value_in(&stored, key), value_in(&given, key));
            if stored != given {
                return Err(ContextError::OtherSetting {
                    path: path(),
                    key: key.clone(),
                    stored,
                    given,
                });
            }
        }
        Ok(())
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.model);
        out.put_str(&self.model_name);
        out.put_u32(self.block as u32);
        out.put_u32(self.first_position as u32);
        out.put_str(self.key_format.name());
        out.put_str(self.value_format.name());
        out.put_u64(self.layers.len() as u64);
        for l in &self.layers {
            for n in [l.n_head, l.n_head_kv, l.key_dim, l.value_dim] {
                out.put_u32(n as u32);
            }
            out.put_u32(l.il);
            out.put_f32(l.scale);
            // No cap is a cap of 0, which cannot be.
            out.put_f32(l.soft_cap.unwrap_or(0.0));
        }
        out.put_u64(self.settings.len() as u64);
        for (key, value) in &self.settings {
            out.put_str(key);
            out.put_str(value);
        }
    }

    fn take(take: &mut Take<'_>) -> Result<Self, WireError> {
        let mut model = [0; 32];
        model.copy_from_slice(take.bytes(32)?);
        let model_name = take.str()?.to_owned();
        let (block, first_position) = (take.u32()? as usize, take.u32()? as usize);
        let mut format = || -> Result<RowFormat, WireError> {
            let name = take.str()?;
            RowFormat::from_name(name)
                .ok_or_else(|| WireError::invalid(format!("rows of type `{name}`")))
        };
        let (key_format, value_format) = (format()?, format()?);
        let n = take.len_of(28)?;
        let layer = |_| -> Result<LayerGeometry, WireError> {
            let mut sizes = [0; 4];
            for size in &mut sizes {
                *size = take.u32()? as usize;
            }
            let [n_head, n_head_kv, key_dim, value_dim] = sizes;
            let (il, scale, cap) = (take.u32()?, take.f32()?, take.f32()?);
            let sane = (1..=1 << 16).contains(&n_head_kv)
                && (1..=1 << 16).contains(&key_dim)
                && (1..=1 << 16).contains(&value_dim)
                && key_dim.is_multiple_of(key_format.group_len())
                && value_dim.is_multiple_of(value_format.group_len());
            if !sane {
                return Err(WireError::invalid("impossible sizes of a layer"));
            }
            Ok(LayerGeometry {
                il,
                n_head,
                n_head_kv,
                key_dim,
                value_dim,
                scale,
                soft_cap: (cap != 0.0).then_some(cap),
            })
        };
        let layers: Vec<_> = (0..n).map(layer).collect::<Result<_, _>>()?;
        // Larger ones would not fit the numbers that they are reckoned with.
        let heads: usize = layers.iter().map(|l| l.n_head_kv).sum();
        let longest = layers.iter().map(|l| l.key_dim.max(l.value_dim)).max();
        let sane = (1..=1 << 20).contains(&block)
            && layers.len() <= 1 << 12
            && heads <= 1 << 20
            && block * longest.unwrap_or(0) <= 1 << 28;
        if !sane {
            return Err(WireError::invalid("impossible sizes"));
        }
        let n = take.len_of(16)?;
        let setting = |_| Ok((take.str()?.to_owned(), take.str()?.to_owned()));
        let settings = (0..n).map(setting).collect::<Result<_, WireError>>()?;
        Ok(Self {
            model,
            model_name,
            layers,
            block,
            first_position,
            key_format,
            value_format,
            settings,
        })
    }
}

/// A file of rows, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Number of the file.
    pub id: u32,
    /// First block in the file.
    pub first: usize,
    /// Blocks that belong to the context.
    pub blocks: usize,
}

impl SegmentEntry {
    /// Name of the file.
    #[must_use]
    pub fn name(&self) -> String {
        format!("rows-{:08x}", self.id)
    }
}

/// A part: bytes under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartEntry {
    /// Its name.
    pub name: String,
    /// Number of the file.
    pub id: u32,
    /// Bytes.
    pub len: u64,
    /// Their XXH3.
    pub sum: u64,
}

impl PartEntry {
    /// Name of the file.
    #[must_use]
    pub fn file(&self) -> String {
        format!("part-{:08x}", self.id)
    }

    /// First bytes of the file: magic, version, number of the file, length and
    /// checksum of what follows.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut bytes = PART_MAGIC.to_vec();
        bytes.extend_from_slice(&crate::VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.extend_from_slice(&self.sum.to_le_bytes());
        bytes
    }
}

/// A commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What the context belongs to.
    pub identity: Identity,
    /// Counts commits.
    pub commit: u64,
    /// Tokens read.
    pub n_tokens: u64,
    /// Files of rows, in the order of their blocks, without gaps.
    pub segments: Vec<SegmentEntry>,
    /// All parts.
    pub parts: Vec<PartEntry>,
    /// Number of the next file.
    pub next_id: u32,
}

impl Manifest {
    /// An empty context.
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            commit: 0,
            n_tokens: 0,
            segments: Vec::new(),
            parts: Vec::new(),
            next_id: 1,
        }
    }

    /// Sealed blocks.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.segments.last().map_or(0, |s| s.first + s.blocks)
    }

    /// The file's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.identity.put(&mut body);
        body.put_u64(self.commit);
        body.put_u64(self.n_tokens);
        body.put_u32(self.next_id);
        body.put_u64(self.segments.len() as u64);
        for s in &self.segments {
            body.put_u32(s.id);
            body.put_u64(s.first as u64);
            body.put_u64(s.blocks as u64);
        }
        body.put_u64(self.parts.len() as u64);
        for p in &self.parts {
            body.put_str(&p.name);
            body.put_u32(p.id);
            body.put_u64(p.len);
            body.put_u64(p.sum);
        }
        let mut out = MAGIC.to_vec();
        out.put_u32(VERSION);
        out.put_u8s(&body);
        let sum = xxh3_64(&out);
        out.put_u64(sum);
        out
    }

    /// Whether a file may be a manifest, damaged or cut off: what begins otherwise is
    /// somebody else's.
    pub(crate) fn may_be(bytes: &[u8]) -> bool {
        bytes
            .iter()
            .zip(MAGIC)
            .all(|(byte, of_magic)| *byte == of_magic)
    }

    /// Reads a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`ContextError::Version`] or [`ContextError::Damaged`].
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, ContextError> {
        let damaged = |what: &dyn ToString| ContextError::damaged(path, what.to_string());
        let mut take = Take::new(bytes);
        if take.bytes(8) != Ok(&MAGIC) {
            return Err(damaged(&"it does not begin as a manifest does"));
        }
        let version = take.u32().map_err(|e| damaged(&e))?;
        // The checksum comes first: a version may be damage, too.
        let split = bytes.len().saturating_sub(8);
        let (covered, sum) = bytes.split_at(split);
        if sum != xxh3_64(covered).to_le_bytes() {
            return Err(damaged(&"its checksum does not match"));
        }
        if version != VERSION {
            return Err(ContextError::Version {
                path: path.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        let mut read = || -> Result<Self, WireError> {
            let mut body = Take::new(take.byte_list()?);
            let manifest = Self::take(&mut body)?;
            body.end()?;
            Ok(manifest)
        };
        read().map_err(|e| damaged(&e))
    }

    fn take(body: &mut Take<'_>) -> Result<Self, WireError> {
        let identity = Identity::take(body)?;
        let (commit, n_tokens, next_id) = (body.u64()?, body.u64()?, body.u32()?);
        let mut segments: Vec<SegmentEntry> = Vec::new();
        let mut n_blocks = 0usize;
        for _ in 0..body.len_of(20)? {
            let id = body.u32()?;
            let (first, blocks) = (body.u64()?, body.u64()?);
            let number = |n: u64| u32::try_from(n).map(|n| n as usize);
            let (Ok(first), Ok(blocks)) = (number(first), number(blocks)) else {
                return Err(WireError::invalid("more blocks than can be numbered"));
            };
            if first != n_blocks || blocks == 0 {
                return Err(WireError::invalid("files of rows that do not adjoin"));
            }
            n_blocks += blocks;
            segments.push(SegmentEntry { id, first, blocks });
        }
        if u32::try_from(n_blocks).is_err() {
            return Err(WireError::invalid("more blocks than can be numbered"));
        }
        let mut parts = Vec::new();
        for _ in 0..body.len_of(28)? {
            parts.push(PartEntry {
                name: body.str()?.to_owned(),
                id: body.u32()?,
                len: body.u64()?,
                sum: body.u64()?,
            });
        }
        Ok(Self {
            identity,
            commit,
            n_tokens,
            segments,
            parts,
            next_id,
        })
    }
}

/// Whether a file in a context's folder is the context's.
pub(crate) fn is_ours(name: &str) -> bool {
    let numbered = |prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|n: &str| n.len() == 8 && n.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    ["manifest", "manifest.new", "lock"].contains(&name) || numbered("rows-") || numbered("part-")
}
