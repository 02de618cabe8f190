//! The few file operations that a context needs, so that tests can make each
//! of them fail and can pull the plug.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of files that are written once, front to back.
pub trait Folder: Send + Sync {
    /// Where a file is, or the folder itself (no name), for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// Names of all files.
    ///
    /// # Errors
    /// The system's.
    fn names(&self) -> io::Result<Vec<String>>;

    /// A whole file.
    ///
    /// # Errors
    /// The system's; `NotFound` if there is none.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// A file to read from anywhere. It stays readable when it is removed.
    ///
    /// # Errors
    /// The system's; `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Readable>>;

    /// A new, empty file; one of that name must not exist.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, name: &str) -> io::Result<Box<dyn Appendable>>;

    /// Gives a file another name, replacing what had it, at once or not at all.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns when creations, renames and removals so far will survive a loss
    /// of power.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;
}

/// A file being read.
pub trait Readable: Send + Sync {
    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` if the file is shorter.
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;

    /// The same where reads come from all over the file: what is beside them should not be read
    /// with them.
    ///
    /// # Errors
    /// As [`Readable::read_exact_at`].
    fn read_scattered_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }
}

/// A file being written.
pub trait Appendable: Send + Sync {
    /// Appends bytes. After an error some of them may be there.
    ///
    /// # Errors
    /// The system's.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns when all of it will survive a loss of power.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Clone, Debug)]
pub struct DiskFolder {
    path: PathBuf,
}

impl DiskFolder {
    /// The folder at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
        }
    }
}

impl Folder for DiskFolder {
    fn path(&self, name: &str) -> PathBuf {
        // Joining nothing would leave a slash at the end.
        if name.is_empty() {
            self.path.clone()
        } else {
            self.path.join(name)
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Readable>> {
        Ok(Arc::new(DiskFile::open(&self.path(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appendable>> {
        Ok(Box::new(File::create_new(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync(&self) -> io::Result<()> {
        // Other systems cannot open folders; their renames are durable anyway.
        if cfg!(unix) {
            File::open(&self.path)?.sync_all()
        } else {
            Ok(())
        }
    }
}

/// A file of the file system, open twice: how much the system reads ahead is a matter of
/// the open file, and so is what it takes for a pattern.
struct DiskFile {
    in_order: File,
    scattered: File,
}

impl DiskFile {
    fn open(path: &Path) -> io::Result<Self> {
        let scattered = File::open(path)?;
        // Without this rows that happen to lie near each other look like a file being read
        // from front to back, and megabytes after them are read, too.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let _ = rustix::fs::fadvise(&scattered, 0, None, rustix::fs::Advice::Random);
        }
        Ok(Self {
            in_order: File::open(path)?,
            scattered,
        })
    }
}

impl Readable for DiskFile {
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&self.in_order, out, offset)
    }

    fn read_scattered_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&self.scattered, out, offset)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

impl Appendable for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
