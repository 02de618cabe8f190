//! Downloads GGUF files from the Hugging Face hub, or whoever speaks its protocol.
//!
//! Files go to the hub's usual cache on disk, where other programs find them and
//! `kiv-models` does. The crate `hf-hub` knows protocol and cache; here a file is
//! chosen, and believed only when its SHA-256 is the one that the hub tells. A download
//! that was cut off goes on where it ended.

mod choice;
mod error;

pub use choice::choose;
pub use error::HubError;

use error::refused;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where downloads come from unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// What is asked for: `user/model`, `user/model:Q4_K_M`, or a file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `user/model`.
    pub repo: String,
    /// How it is to be quantized.
    pub tag: Option<String>,
    /// Path of the file, instead of a tag.
    pub file: Option<String>,
}

impl Wanted {
    /// From the words of `-hf` and `-hff`.
    ///
    /// # Errors
    /// [`HubError::BadName`] unless it is `user/model` or `user/model:tag`.
    pub fn parse(text: &str, file: Option<&str>) -> Result<Self, HubError> {
        let (repo, tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag)),
            None => (text, None),
        };
        let is_word = |word: &str| {
            let usual = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !word.is_empty() && !word.starts_with('.') && word.bytes().all(usual)
        };
        let words: Vec<&str> = repo.split('/').collect();
        let is_good = words.len() == 2
            && words.iter().copied().all(is_word)
            && tag.is_none_or(is_word)
            && file.is_none_or(|file| file.split('/').all(is_word));
        if !is_good {
            return Err(HubError::BadName {
                name: file.map_or(text.to_owned(), |file| format!("{text} {file}")),
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            tag: tag.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its file; of a split model the first.
    pub path: PathBuf,
    /// Its file's name in the repository.
    pub name: String,
    /// Files that had to be downloaded, or whose download went on.
    pub downloaded: usize,
    /// Why the hub was not asked whether there is a newer one.
    pub offline: Option<String>,
}

/// Is told how downloads go.
pub trait Watch {
    /// A file of `bytes` bytes begins, or goes on.
    fn begin(&mut self, name: &str, bytes: u64);
    /// So many more bytes of it have come.
    fn more(&mut self, bytes: u64);
    /// It is complete.
    fn end(&mut self);
}

impl Watch for () {
    fn begin(&mut self, _: &str, _: u64) {}
    fn more(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// A hub and a cache.
pub struct Hub {
    api: Api,
    cache: PathBuf,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the token that
    /// `huggingface-cli login` has left), and the cache of `HF_HUB_CACHE` or `HF_HOME`.
    ///
    /// # Errors
    /// [`HubError::NoCache`] without a home, [`HubError::Client`].
    pub fn from_env() -> Result<Self, HubError> {
        let set = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let stores = kiv_models::Stores::from_env();
        let cache = stores.hugging_face.first().ok_or(HubError::NoCache)?;
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let token = set("HF_TOKEN").or_else(|| {
            let file = cache.parent()?.join("token");
            Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
        });
        Self::new(&endpoint, token.filter(|t| !t.is_empty()), cache)
    }

    /// With everything said.
    ///
    /// # Errors
    /// [`HubError::Client`].
    pub fn new(endpoint: &str, token: Option<String>, cache: &Path) -> Result<Self, HubError> {
        let builder = ApiBuilder::new()
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_cache_dir(cache.to_owned())
            .with_token(token)
            .with_user_agent("kiv", env!("CARGO_PKG_VERSION"))
            .with_progress(false);
        let api = builder
            .build()
            .map_err(|e| HubError::Client { why: e.to_string() })?;
        Ok(Self {
            api,
            cache: cache.to_owned(),
        })
    }

    /// Finds what is wanted, downloads what is missing of it, and checks it. If the hub
    /// cannot be reached, a model that is in the cache will do.
    ///
    /// # Errors
    /// [`HubError`], by what went wrong. What has come of a file stays, to go on with,
    /// unless it is wrong.
    pub fn fetch(&self, wanted: &Wanted, watch: &mut dyn Watch) -> Result<Fetched, HubError> {
        let repo = self.api.model(wanted.repo.clone());
        let (commit, files) = match self.files(&repo, wanted) {
            Ok(listed) => listed,
            Err(error @ HubError::Unreachable { .. }) => return self.cached(wanted, error),
            Err(error) => return Err(error),
        };
        let chosen = choose(wanted, &files)?;
        let mut downloaded = 0;
        for file in &chosen {
            downloaded += usize::from(self.bring(&repo, wanted, &commit, file, watch)?);
        }
        Ok(Fetched {
            path: self.place(wanted, &commit, &chosen[0].name),
            name: chosen[0].name.clone(),
            downloaded,
            offline: None,
        })
    }

    /// All files of a repository and its commit.
    fn files(
        &self,
        repo: &ApiRepo,
        wanted: &Wanted,
    ) -> Result<(String, Vec<RemoteFile>), HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            size: u64,
            #[serde(alias = "oid")]
            sha256: String,
        }
        let request = repo.info_request().query("blobs", "true");
        let answer = request.call();
        let mut answer = answer.map_err(|error| refused(error, &wanted.repo, None))?;
        let info: Info = (answer.body_mut().read_json()).map_err(|error| HubError::Answer {
            repo: wanted.repo.clone(),
            why: error.to_string(),
        })?;
        let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let files = info.siblings.into_iter().filter_map(|file| {
            let lfs = file
                .lfs
                .filter(|lfs| lfs.sha256.len() == 64 && is_name(&lfs.sha256));
            let (bytes, sha256) = lfs.map_or((0, String::new()), |lfs| (lfs.size, lfs.sha256));
            // A name that leads elsewhere is none.
            let is_inside = file
                .rfilename
                .split('/')
                .all(|part| !part.is_empty() && part != "..");
            is_inside.then_some(RemoteFile {
                name: file.rfilename,
                bytes,
                sha256: sha256.to_lowercase(),
            })
        });
        if info.sha.is_empty() || !is_name(&info.sha) {
            return Err(HubError::Answer {
                repo: wanted.repo.clone(),
                why: "it names no commit".to_owned(),
            });
        }
        Ok((info.sha, files.collect()))
    }

    /// The folder of a repository in the cache.
    fn folder(&self, wanted: &Wanted) -> PathBuf {
        let name = format!("models--{}", wanted.repo.replace('/', "--"));
        self.cache.join(name)
    }

    fn place(&self, wanted: &Wanted, commit: &str, name: &str) -> PathBuf {
        self.folder(wanted)
            .join("snapshots")
            .join(commit)
            .join(name)
    }

    /// Sees to it that a file is in the cache and right; whether it was not there.
    fn bring(
        &self,
        repo: &ApiRepo,
        wanted: &Wanted,
        commit: &str,
        file: &RemoteFile,
        watch: &mut dyn Watch,
    ) -> Result<bool, HubError> {
        if file.sha256.is_empty() {
            return Err(HubError::NoChecksum {
                file: file.name.clone(),
            });
        }
        let blob = self.folder(wanted).join("blobs").join(&file.sha256);
        let place = self.place(wanted, commit, &file.name);
        if has_length(&place, file.bytes) {
            return Ok(false);
        }
        // What is there has passed the check once, whatever snapshot links to it.
        let is_there = has_length(&blob, file.bytes);
        let part = blob.with_extension("sync.part");
        if !is_there {
            // What is too long is of nothing that is wanted.
            if part.metadata().is_ok_and(|part| part.len() >= file.bytes) {
                let _ = std::fs::remove_file(&part);
            }
            // A link to what was removed.
            let _ = std::fs::remove_file(&place);
            watch.begin(&file.name, file.bytes);
            let downloaded = repo.download_with_progress(&file.name, Shown(watch));
            downloaded.map_err(|error| error::failed(error, &wanted.repo, &file.name, &part))?;
            watch.end();
            self.check(&blob, &part, file)?;
        }
        if !place.exists() {
            link(&blob, &place, &file.name).map_err(|source| HubError::Disk {
                path: place.clone(),
                source,
            })?;
        }
        Ok(!is_there)
    }

    /// Compares a blob with the checksum that it should have. One that is too short is
    /// put back to go on with, one that is wrong is removed.
    fn check(&self, blob: &Path, part: &Path, file: &RemoteFile) -> Result<(), HubError> {
        let disk = |source| HubError::Disk {
            path: blob.to_owned(),
            source,
        };
        let found = match blob.metadata() {
            Ok(found) => found.len(),
            // The hub has sent a file of another name.
            Err(_) => 0,
        };
        if found < file.bytes {
            let _ = std::fs::rename(blob, part);
            return Err(HubError::CutOff {
                file: file.name.clone(),
                why: format!("{found} of {} bytes have come", file.bytes),
            });
        }
        let mut reader = std::fs::File::open(blob).map_err(disk)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match reader.read(&mut buffer).map_err(disk)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let digest = hash.finalize();
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if digest == file.sha256 {
            return Ok(());
        }
        let _ = std::fs::remove_file(blob);
        Err(HubError::Checksum {
            file: file.name.clone(),
            expected: file.sha256.clone(),
            found: digest,
        })
    }

    /// What the cache has of what is wanted.
    fn cached(&self, wanted: &Wanted, why: HubError) -> Result<Fetched, HubError> {
        let folder = self.folder(wanted);
        let Ok(commit) = std::fs::read_to_string(folder.join("refs/main")) else {
            return Err(why);
        };
        let snapshot = folder.join("snapshots").join(commit.trim());
        let mut files = Vec::new();
        walk(&snapshot, "", &mut files);
        let Ok(chosen) = choose(wanted, &files) else {
            return Err(why);
        };
        Ok(Fetched {
            path: snapshot.join(&chosen[0].name),
            name: chosen[0].name.clone(),
            downloaded: 0,
            offline: Some(why.to_string()),
        })
    }
}

fn has_length(path: &Path, bytes: u64) -> bool {
    path.metadata().is_ok_and(|found| found.len() == bytes)
}

/// Files below a folder by their paths in it.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<RemoteFile>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Of what the link leads to.
        match entry.path().metadata() {
            Ok(found) if found.is_dir() => walk(&entry.path(), &format!("{name}/"), files),
            Ok(found) => files.push(RemoteFile {
                name,
                bytes: found.len(),
                sha256: String::new(),
            }),
            Err(_) => {}
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Makes `place`, where a snapshot has `name`, another name of a blob of the same
/// repository.
fn link(blob: &Path, place: &Path, name: &str) -> std::io::Result<()> {
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A link that leads nowhere.
    let _ = std::fs::remove_file(place);
    #[cfg(unix)]
    {
        // The cache may be moved as a whole.
        let mut way: PathBuf = name.split('/').map(|_| "..").collect();
        way.extend(["..", "blobs"]);
        way.extend(blob.file_name());
        std::os::unix::fs::symlink(way, place)
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        std::fs::hard_link(blob, place).or_else(|_| std::fs::copy(blob, place).map(|_| ()))
    }
}

/// hf-hub's way of telling.
struct Shown<'a>(&'a mut dyn Watch);

impl Progress for Shown<'_> {
    fn init(&mut self, _: usize, _: &str) {}
    fn update(&mut self, bytes: usize) {
        self.0.more(bytes as u64);
    }
    fn finish(&mut self) {}
}
