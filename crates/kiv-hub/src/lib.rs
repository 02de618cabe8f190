//! Downloads GGUF files from the Hugging Face hub, or whoever speaks its protocol.
//!
//! Files go to the hub's usual cache on disk, where other programs find them and
//! `kiv-models` does. A file is believed only when its SHA-256 is the one that the hub
//! tells; one that git keeps itself, as it does with small files, has none and only its
//! length is compared. A download that was cut off goes on where it ended, also
//! another program's. Of two processes that want the same file, one waits.

mod cache;
mod choice;
mod client;
mod download;
mod error;

pub use choice::choose;
pub use error::HubError;

use cache::{Folder, has_length};
use client::Client;
use download::Task;
use kiv_models::is_sha256;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where downloads come from unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// Its length, where the hub tells it.
    pub bytes: Option<u64>,
    /// Its SHA-256, in hexadecimal, where the hub tells it.
    pub sha256: Option<String>,
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
    /// [`HubError::BadName`] unless it is `user/model` or `user/model:tag`,
    /// [`HubError::BadFile`] if no file can have that name.
    pub fn parse(text: &str, file: Option<&str>) -> Result<Self, HubError> {
        let (repo, tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag)),
            None => (text, None),
        };
        let words: Vec<&str> = repo.split('/').collect();
        // They become folders of the cache.
        if words.len() != 2 || !words.into_iter().all(is_word) || !tag.is_none_or(is_word) {
            return Err(HubError::BadName {
                name: text.to_owned(),
            });
        }
        if let Some(name) = file.filter(|file| !is_below(file)) {
            return Err(HubError::BadFile {
                name: name.to_owned(),
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            tag: tag.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        match (&self.file, &self.tag) {
            (Some(file), _) => write!(f, "/{file}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether this may be the name of a file or folder on any system.
fn is_word(word: &str) -> bool {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !word.is_empty() && word.len() < 200 && !word.starts_with('.') && word.bytes().all(usual)
}

/// Whether this is a path below a folder that does not leave it, on any system.
fn is_below(path: &str) -> bool {
    let harmless = |piece: &str| !piece.is_empty() && piece != "." && piece != "..";
    let odd = |c: char| c == '\\' || c == ':' || c.is_control();
    path.split('/').all(harmless) && !path.contains(odd)
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
    /// So many bytes of it are there. May go back to zero.
    fn at(&mut self, bytes: u64);
    /// It is complete.
    fn end(&mut self);
    /// Something else that its user may want to know.
    fn note(&mut self, note: &Note);
}

impl Watch for () {
    fn begin(&mut self, _: &str, _: u64) {}
    fn at(&mut self, _: u64) {}
    fn end(&mut self) {}
    fn note(&mut self, _: &Note) {}
}

/// What happens besides bytes coming; shown as a line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// A part of the file was there already.
    GoesOn {
        /// The file.
        name: &'a str,
        /// Bytes that were there.
        from: u64,
    },
    /// The connection broke, and the hub is asked for the rest.
    Again {
        /// The file.
        name: &'a str,
        /// Why it broke.
        why: &'a str,
    },
    /// The hub does not send a part of the file: it begins anew.
    FromStart {
        /// The file.
        name: &'a str,
    },
    /// Another process downloads the file.
    Waiting {
        /// The file.
        name: &'a str,
    },
}

impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GoesOn { name, from } => {
                write!(f, "{name}: {from} bytes are there, going on with the rest")
            }
            Self::Again { name, why } => write!(f, "{name}: {why}; trying again"),
            Self::FromStart { name } => {
                write!(
                    f,
                    "{name}: the hub sends it from the start only, beginning anew"
                )
            }
            Self::Waiting { name } => {
                write!(f, "{name}: another program downloads it, waiting for that")
            }
        }
    }
}

/// How long a hub is borne with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that may bring nothing, after the first.
    pub retries: u32,
    /// The pause before the first of them; then it doubles.
    pub pause: Duration,
    /// How long nothing may come.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retries: 5,
            pause: Duration::from_secs(1),
            stall: Duration::from_secs(60),
        }
    }
}

/// A hub and a cache.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    patience: Patience,
    offline: bool,
}

/// A file that is wanted, as far as the hub has told.
struct Found {
    name: String,
    /// Where the hub has it.
    url: String,
    /// Name of its blob.
    etag: String,
    bytes: u64,
    sha256: Option<String>,
}

impl Found {
    /// Whether the commit has it. A link must lead to this blob: hubs that are not the
    /// usual one may change a file and keep the commit.
    fn is_placed(&self, folder: &Folder, commit: &str) -> bool {
        let place = folder.place(commit, &self.name);
        has_length(&place, self.bytes) && (!place.is_symlink() || self.has_blob(folder))
    }

    /// Whether its blob is there: it has passed the check once, whatever commit links
    /// to it.
    fn has_blob(&self, folder: &Folder) -> bool {
        has_length(&folder.blob(&self.etag), self.bytes)
    }
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the file that
    /// `HF_TOKEN_PATH` names, or the token that `hf auth login` has left),
    /// `HF_HUB_OFFLINE`, and the cache of `HF_HUB_CACHE` or `HF_HOME`.
    ///
    /// # Errors
    /// [`HubError::NoCache`] without a home, [`HubError::Endpoint`], [`HubError::Token`].
    pub fn from_env() -> Result<Self, HubError> {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let stores = kiv_models::Stores::from_env();
        let cache = stores.hugging_face.first().ok_or(HubError::NoCache)?;
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let mut hub = Self::new(&endpoint, token(set)?, cache)?;
        let on = |text: String| !["0", "off", "no", "false"].contains(&&*text.to_lowercase());
        hub.offline = set("HF_HUB_OFFLINE").is_some_and(on);
        Ok(hub)
    }

    /// With everything said.
    ///
    /// # Errors
    /// [`HubError::Endpoint`].
    pub fn new(endpoint: &str, token: Option<String>, cache: &Path) -> Result<Self, HubError> {
        Ok(Self {
            client: Client::new(endpoint, token)?,
            cache: cache.to_owned(),
            patience: Patience::default(),
            offline: false,
        })
    }

    /// With other patience.
    #[must_use]
    pub fn patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Only what is in the cache, if so.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Finds what is wanted, downloads what is missing of it, and checks it. If the hub
    /// cannot be reached, or the cache not written, a model that is in the cache will do.
    ///
    /// # Errors
    /// [`HubError`], by what went wrong. What has come of a file stays, to go on with,
    /// unless it is wrong.
    pub fn fetch(&self, wanted: &Wanted, watch: &mut dyn Watch) -> Result<Fetched, HubError> {
        let folder = Folder::new(&self.cache, &wanted.repo);
        if self.offline {
            let cached = cached(&folder, wanted, "HF_HUB_OFFLINE is set");
            return cached.ok_or_else(|| HubError::Offline {
                what: wanted.to_string(),
                cache: self.cache.clone(),
            });
        }
        let (commit, files) = match self.look(wanted) {
            Ok(found) => found,
            Err(error) => {
                let Some(why) = error.passing() else {
                    return Err(error);
                };
                return cached(&folder, wanted, &why).ok_or(match error {
                    HubError::Unreachable { why, .. } => HubError::Unreachable {
                        why,
                        missing: Some(format!(
                            ", and {wanted} is not in the cache {}",
                            self.cache.display()
                        )),
                    },
                    error => error,
                });
            }
        };
        let downloaded = match self.bring_all(&folder, wanted, &commit, &files, watch) {
            Ok(downloaded) => downloaded,
            Err(error) => {
                let why = error.unwritable();
                let there = why.and_then(|why| cached(&folder, wanted, &why));
                return there.ok_or(error);
            }
        };
        // The files are there all the same; the next call says it again.
        let _ = folder.set_main(&commit);
        Ok(Fetched {
            path: folder.place(&commit, &files[0].name),
            name: files[0].name.clone(),
            downloaded,
            offline: None,
        })
    }

    /// Sees to it that all files are in the cache and right; how many were not there.
    fn bring_all(
        &self,
        folder: &Folder,
        wanted: &Wanted,
        commit: &str,
        files: &[Found],
        watch: &mut dyn Watch,
    ) -> Result<usize, HubError> {
        self.check_room(folder, wanted, commit, files)?;
        let mut downloaded = 0;
        for file in files {
            downloaded += usize::from(self.bring(folder, wanted, commit, file, watch)?);
        }
        Ok(downloaded)
    }

    /// The commit that `main` is at, and the files of it that are wanted: at least one.
    fn look(&self, wanted: &Wanted) -> Result<(String, Vec<Found>), HubError> {
        let (commit, files) = self.list(wanted)?;
        let chosen = choose(wanted, &files)?.into_iter();
        let found = chosen.map(|file| self.find(wanted, &commit, file));
        let found = found.collect::<Result<_, _>>()?;
        Ok((commit, found))
    }

    /// The commit of a repository and all its files.
    fn list(&self, wanted: &Wanted) -> Result<(String, Vec<RemoteFile>), HubError> {
        let listing = self.client.list(&wanted.repo)?;
        let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_word(&listing.sha) || !is_hex(&listing.sha) {
            return Err(HubError::Answer {
                what: wanted.repo.clone(),
                why: "it names no commit".to_owned(),
            });
        }
        let siblings = listing.siblings.into_iter();
        let files = siblings.filter(|file| is_below(&file.rfilename));
        let files = files.map(|file| {
            let lfs = file.lfs.filter(|lfs| is_sha256(&lfs.sha256));
            RemoteFile {
                name: file.rfilename,
                bytes: lfs.as_ref().map(|lfs| lfs.size),
                sha256: lfs.map(|lfs| lfs.sha256.to_lowercase()),
            }
        });
        Ok((listing.sha, files.collect()))
    }

    /// Asks about a file what the list has not told.
    fn find(&self, wanted: &Wanted, commit: &str, file: RemoteFile) -> Result<Found, HubError> {
        let url = self.client.file_url(&wanted.repo, commit, &file.name);
        let (etag, bytes) = match (&file.sha256, file.bytes) {
            (Some(sha256), Some(bytes)) => (sha256.clone(), bytes),
            _ => {
                let stated = self.client.stated(&wanted.repo, &file.name, &url)?;
                (stated.etag, stated.bytes)
            }
        };
        Ok(Found {
            name: file.name,
            url,
            sha256: is_sha256(&etag).then(|| etag.to_lowercase()),
            etag,
            bytes,
        })
    }

    /// Refuses what would fill the disk, before anything of it comes.
    fn check_room(
        &self,
        folder: &Folder,
        wanted: &Wanted,
        commit: &str,
        files: &[Found],
    ) -> Result<(), HubError> {
        let missing = |file: &&Found| !file.is_placed(folder, commit) && !file.has_blob(folder);
        let needs = files.iter().filter(missing).map(|file| {
            let part = folder.part(&file.etag).metadata();
            file.bytes.saturating_sub(part.map_or(0, |part| part.len()))
        });
        let needs = needs.fold(0, u64::saturating_add);
        if needs == 0 {
            return Ok(());
        }
        let blobs = folder.create()?;
        match kiv_models::free_space(&blobs) {
            Some(free) if free < needs => Err(HubError::NoRoom {
                what: wanted.to_string(),
                needs,
                free,
                folder: blobs,
            }),
            _ => Ok(()),
        }
    }

    /// Sees to it that a file is in the cache and right; whether it was not there.
    fn bring(
        &self,
        folder: &Folder,
        wanted: &Wanted,
        commit: &str,
        file: &Found,
        watch: &mut dyn Watch,
    ) -> Result<bool, HubError> {
        if file.is_placed(folder, commit) {
            return Ok(false);
        }
        if file.has_blob(folder) {
            folder.link(&file.etag, commit, &file.name)?;
            return Ok(false);
        }
        let _lock = folder.lock(&file.etag, || {
            watch.note(&Note::Waiting { name: &file.name });
        })?;
        // Perhaps whoever had the lock has done it.
        let downloads = !file.has_blob(folder);
        if downloads {
            let (blob, part) = (folder.blob(&file.etag), folder.part(&file.etag));
            let task = Task {
                repo: &wanted.repo,
                name: &file.name,
                url: &file.url,
                bytes: file.bytes,
                sha256: file.sha256.as_deref(),
                part: part.clone(),
            };
            task.run(&self.client, &self.patience, watch)?;
            std::fs::rename(&part, &blob).map_err(HubError::disk(&blob))?;
        }
        folder.link(&file.etag, commit, &file.name)?;
        Ok(downloads)
    }
}

/// The token, as variables or the file of `hf auth login` say.
fn token(set: impl Fn(&str) -> Option<String>) -> Result<Option<String>, HubError> {
    let (from, token) = match set("HF_TOKEN") {
        Some(token) => ("HF_TOKEN".to_owned(), token),
        None => {
            // Where the cache is says nothing of it: `HF_HUB_CACHE` moves models alone.
            let file = set("HF_TOKEN_PATH").map(PathBuf::from);
            let file = file.or_else(|| Some(kiv_models::hugging_face_home()?.join("token")));
            let token = file.and_then(|file| Some((std::fs::read_to_string(&file).ok()?, file)));
            let Some((token, file)) = token else {
                return Ok(None);
            };
            (file.display().to_string(), token)
        }
    };
    let token = token.trim();
    // It becomes a line of a request.
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(HubError::Token { from });
    }
    Ok(Some(token.to_owned()).filter(|token| !token.is_empty()))
}

/// What the cache has of what is wanted.
fn cached(folder: &Folder, wanted: &Wanted, why: &str) -> Option<Fetched> {
    folder.commits().into_iter().find_map(|commit| {
        let chosen = choose(wanted, &folder.files(&commit)).ok()?;
        let first = chosen.into_iter().next()?;
        Some(Fetched {
            path: folder.place(&commit, &first.name),
            name: first.name,
            downloaded: 0,
            offline: Some(why.to_owned()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word() {
        let of = |text: &str| token(|name| (name == "HF_TOKEN").then(|| text.to_owned()));
        assert_eq!(of(" hf_abc\n").unwrap().as_deref(), Some("hf_abc"));
        assert_eq!(of(" \n").unwrap(), None);
        for bad in ["hf_abc\nhf_def", "hf_abc # mine", "hf_äbc"] {
            let why = of(bad).unwrap_err().to_string();
            assert!(why.contains("HF_TOKEN") && !why.contains("hf_"), "{why}");
        }
    }

    #[test]
    fn paths_stay_below_their_folder() {
        for good in ["a.gguf", "Q8_0/a b.gguf", "..a"] {
            assert!(is_below(good), "{good}");
        }
        for bad in ["", "/a", "a/../b", "a//b", "./a", "a\\b", "C:a", "a\0"] {
            assert!(!is_below(bad), "{bad}");
        }
    }
}
