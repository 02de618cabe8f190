//! Which model a file is, without reading all of it.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::GgufError;
use crate::model::ModelFile;

/// Bytes from the beginning that count: metadata, vocabulary, tensor infos.
const HEAD: u64 = 32 << 20;

/// Pieces of the rest that count, spread evenly, the last one at the end.
const PIECES: u64 = 256;

/// Bytes of a piece.
const PIECE: u64 = 16 << 10;

impl ModelFile {
    /// A hash that tells this model from others: SHA-256 over the length, the
    /// first 32 MiB and 256 pieces of 16 KiB of each file. Not meant to resist
    /// forgery.
    ///
    /// # Errors
    /// [`GgufError::Io`].
    pub fn fingerprint(&self) -> Result<[u8; 32], GgufError> {
        fingerprint(&self.files).map_err(|(path, source)| GgufError::Io { path, source })
    }

    /// The model in a few words, for messages: its name, type and the beginning
    /// of its fingerprint.
    #[must_use]
    pub fn title(&self, fingerprint: &[u8; 32]) -> String {
        let name = self.name.as_deref().unwrap_or(&self.arch);
        let [a, b, c, d, ..] = fingerprint;
        format!("{name} {} {a:02x}{b:02x}{c:02x}{d:02x}", self.file_type)
    }
}

fn fingerprint(files: &[PathBuf]) -> Result<[u8; 32], (PathBuf, std::io::Error)> {
    let mut hash = Sha256::new();
    for path in files {
        add(&mut hash, path).map_err(|error| (path.clone(), error))?;
    }
    Ok(hash.finalize().into())
}

fn add(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    hash.update(len.to_le_bytes());
    let head = len.min(HEAD);
    let mut bytes = vec![0; head as usize];
    file.read_exact(&mut bytes)?;
    hash.update(&bytes);
    let rest = len - head;
    let mut piece = vec![0; rest.min(PIECE) as usize];
    for i in 0..PIECES.min(rest.div_ceil(PIECE.max(1))) {
        let last = rest - piece.len() as u64;
        let at = head + last * (i + 1) / PIECES.min(rest.div_ceil(PIECE));
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut piece)?;
        hash.update(&piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut seen = Vec::new();
        let mut bytes = vec![7u8; (HEAD + 3 * PIECE + 5) as usize];
        let end = bytes.len();
        for change in [None, Some(0), Some(HEAD as usize - 1), Some(end - 1)] {
            if let Some(at) = change {
                bytes[at] ^= 1;
            }
            std::fs::write(&path, &bytes).unwrap();
            let hash = fingerprint(std::slice::from_ref(&path)).unwrap();
            assert_eq!(fingerprint(std::slice::from_ref(&path)).unwrap(), hash);
            assert!(!seen.contains(&hash), "after a change at {change:?}");
            seen.push(hash);
        }
        for n in [0, 1, HEAD as usize, HEAD as usize + 1] {
            std::fs::write(&path, &bytes[..n]).unwrap();
            let hash = fingerprint(std::slice::from_ref(&path)).unwrap();
            assert!(!seen.contains(&hash));
            seen.push(hash);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(fingerprint(&[path]).is_err());
    }
}
