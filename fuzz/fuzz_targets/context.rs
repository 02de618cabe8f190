//! A folder whose files hold anything: it opens or is refused, and what it
//! gives to read are errors or rows. Sums are made right, or nothing would ever
//! get past them.
#![no_main]

use kiv_context::{Appendable, DiskTier, Folder, Manifest, Readable};
use kiv_policy::ColdRows;
use libfuzzer_sys::fuzz_target;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// A manifest, and the bytes of every other file.
struct Fixed {
    manifest: Vec<u8>,
    other: Arc<Bytes>,
}

struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = at.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.0.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

impl Folder for Fixed {
    fn path(&self, name: &str) -> PathBuf {
        Path::new("/").join(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(vec!["manifest".to_owned()])
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(if name == "manifest" {
            self.manifest.clone()
        } else {
            self.other.0.clone()
        })
    }
    fn open(&self, _: &str) -> io::Result<Arc<dyn Readable>> {
        Ok(Arc::clone(&self.other) as Arc<dyn Readable>)
    }
    fn create(&self, _: &str) -> io::Result<Box<dyn Appendable>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    // As it is: magic, version and sum.
    let _ = Manifest::decode(data, Path::new("manifest"));
    let Some((split, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let split = usize::from(u16::from_le_bytes(*split)).min(rest.len());
    let (body, other) = rest.split_at(split);
    let mut manifest = b"KIVCTX\r\n".to_vec();
    manifest.extend(1u32.to_le_bytes());
    manifest.extend((body.len() as u64).to_le_bytes());
    manifest.extend(body);
    manifest.extend(xxh3_64(&manifest).to_le_bytes());
    let Ok(read) = Manifest::decode(&manifest, Path::new("manifest")) else {
        return;
    };
    let folder = Fixed {
        manifest,
        other: Arc::new(Bytes(other.to_vec())),
    };
    let Ok(tier) = DiskTier::open_in(Arc::new(folder), read.identity.clone(), Some(1 << 20)) else {
        return;
    };
    for part in read.parts.iter().take(4) {
        let _ = tier.part(&part.name);
    }
    for (layer, l) in read.identity.layers.iter().enumerate().take(2) {
        for block in 0..tier.n_blocks().min(4) as u32 {
            let _ = tier.keys(layer, l.n_head_kv - 1, block, 1);
            let _ = tier.values(layer, 0, block, usize::MAX);
        }
    }
});
