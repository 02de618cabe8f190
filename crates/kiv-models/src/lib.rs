//! Models that other programs have downloaded, found by name.
//!
//! Four kinds of folders are known, none is ever written to:
//!
//! - ollama's store: manifests that name blobs by their SHA-256
//! - the Hugging Face cache: snapshots of repositories, files linked to blobs
//! - LM Studio's folder: `publisher/repository/file.gguf`
//! - llama.cpp's cache: files side by side
//!
//! [`Stores::list`] tells what is there, and what is there but broken;
//! [`Stores::find`] looks one up by the name that its program uses
//! (`llama3.2:3b`, `bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M`);
//! [`FoundModel::verify`] compares files with the checksums in their names.

mod files;
mod hugging_face;
mod lm_studio;
mod locks;
mod ollama;
mod space;
pub use locks::has_no_locks;
pub use space::free_space;

use serde::Serialize;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Whose folder a model is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// ollama.
    Ollama,
    /// The Hugging Face cache.
    HuggingFace,
    /// LM Studio.
    LmStudio,
    /// llama.cpp's cache.
    LlamaCpp,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ollama => "ollama",
            Self::HuggingFace => "hugging face",
            Self::LmStudio => "lm studio",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// A model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FoundModel {
    /// Its program's name for it.
    pub name: String,
    /// Where it is from.
    pub source: Source,
    /// Its file; of a split model the first.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// SHA-256 of `path`'s file, where the store tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Of a split model the other files, each with its SHA-256 where the store tells it.
    #[serde(skip)]
    pub parts: Vec<(PathBuf, Option<String>)>,
}

/// A path as it is shown: JSON cannot hold one that is not UTF-8, and a list of models must
/// not end at it.
fn shown<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl FoundModel {
    /// Reads the files and compares each with its checksum. `false` if one of them has none
    /// to compare with.
    ///
    /// # Errors
    /// [`Problem`] if one differs or cannot be read.
    pub fn verify(&self) -> Result<bool, Problem> {
        let first = (&self.path, &self.sha256);
        let others = self.parts.iter().map(|(path, sha256)| (path, sha256));
        let mut all = true;
        for (path, expected) in std::iter::once(first).chain(others) {
            match expected {
                Some(expected) => self.verify_file(path, expected)?,
                None => all = false,
            }
        }
        Ok(all)
    }

    fn verify_file(&self, path: &Path, expected: &str) -> Result<(), Problem> {
        use sha2::{Digest, Sha256};
        let failed = |why: String| Problem {
            path: path.to_owned(),
            why,
        };
        let mut file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(|e| failed(e.to_string()))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let digest = hash.finalize();
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if found == expected {
            return Ok(());
        }
        Err(failed(format!(
            "its SHA-256 is {found}, not {expected}: the download is damaged, fetch {} again with {}",
            self.name, self.source
        )))
    }
}

/// Something in a store that should be a model and is not.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[error("{}: {why}", path.display())]
pub struct Problem {
    /// The file.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

/// Why there is no such model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FindError {
    /// No store has it.
    #[error(
        "there is no file and no downloaded model {name}{}; `kiv models` lists what was found",
        like(.near)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that are like it.
        near: Vec<String>,
    },
    /// Several have it.
    #[error("{name} may be any of {}: say which", .names.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The candidates' full names.
        names: Vec<String>,
    },
    /// It is there, but broken.
    #[error("{name} is there but cannot be used: {problem}")]
    Broken {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

fn like(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!(" (there is {})", names.join(", "))
    }
}

/// What stores hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// By source and name.
    pub models: Vec<FoundModel>,
    /// Names and what is wrong with them.
    pub broken: Vec<(String, Problem)>,
}

impl Listing {
    fn add(&mut self, name: String, model: Result<FoundModel, Problem>) {
        match model {
            Ok(model) => self.models.push(model),
            Err(problem) => self.broken.push((name, problem)),
        }
    }
}

/// The folder of Hugging Face's programs: that of `HF_HOME`, or `huggingface` in the user's
/// cache. Their token is in it, wherever `HF_HUB_CACHE` puts models.
#[must_use]
pub fn hugging_face_home() -> Option<PathBuf> {
    Places(from_env).hugging_face()
}

fn from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Folders, as environment variables say; an empty one says nothing.
struct Places<F>(F);

impl<F: Fn(&str) -> Option<PathBuf>> Places<F> {
    fn set(&self, name: &str) -> Option<PathBuf> {
        self.0(name).filter(|path| !path.as_os_str().is_empty())
    }

    fn under_home(&self, path: &str) -> Option<PathBuf> {
        let home = self.set("HOME").or_else(|| self.set("USERPROFILE"))?;
        Some(home.join(path))
    }

    fn cache(&self) -> Option<PathBuf> {
        self.set("XDG_CACHE_HOME")
            .or_else(|| self.under_home(".cache"))
    }

    fn hugging_face(&self) -> Option<PathBuf> {
        self.set("HF_HOME")
            .or_else(|| Some(self.cache()?.join("huggingface")))
    }
}

/// Where to look. Folders that are not there hold nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stores {
    /// Folders with ollama's `manifests` and `blobs`.
    pub ollama: Vec<PathBuf>,
    /// Hugging Face caches: folders of `models--…`.
    pub hugging_face: Vec<PathBuf>,
    /// LM Studio's folders of models.
    pub lm_studio: Vec<PathBuf>,
    /// llama.cpp's cache.
    pub llama_cpp: Vec<PathBuf>,
}

impl Stores {
    /// Where these programs put models unless their environment variables
    /// (`OLLAMA_MODELS`, `HF_HUB_CACHE`, `HF_HOME`, `LLAMA_CACHE`, `XDG_CACHE_HOME`)
    /// say otherwise.
    #[must_use]
    pub fn from_env() -> Self {
        Self::of(from_env)
    }

    /// The same with other variables.
    fn of(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let places = Places(variable);
        let cached = |path: &str| places.cache().map(|cache| cache.join(path));
        let all = |paths: [Option<PathBuf>; 2]| paths.into_iter().flatten().collect();
        Self {
            // As a service, ollama has a home of its own.
            ollama: match places.set("OLLAMA_MODELS") {
                Some(path) => vec![path],
                None => all([
                    places.under_home(".ollama/models"),
                    Some("/usr/share/ollama/.ollama/models".into()),
                ]),
            },
            hugging_face: (places.set("HF_HUB_CACHE"))
                .or_else(|| places.hugging_face().map(|path| path.join("hub")))
                .into_iter()
                .collect(),
            lm_studio: all([
                places.under_home(".lmstudio/models"),
                cached("lm-studio/models"),
            ]),
            llama_cpp: (places.set("LLAMA_CACHE"))
                .or_else(|| cached("llama.cpp"))
                .into_iter()
                .collect(),
        }
    }

    /// All models in them.
    #[must_use]
    pub fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for root in &self.ollama {
            ollama::list(root, &mut listing);
        }
        for root in &self.hugging_face {
            hugging_face::list(root, &mut listing);
        }
        for root in &self.lm_studio {
            lm_studio::list(root, &mut listing);
        }
        for root in &self.llama_cpp {
            for file in files::models_in(root) {
                let name = files::stem(&file);
                let model = files::found(&file, name.clone(), Source::LlamaCpp, |_| None);
                listing.add(name, model);
            }
        }
        listing
            .models
            .sort_by(|a, b| (a.source, &a.name).cmp(&(b.source, &b.name)));
        // A folder that is listed twice holds every model once.
        listing.models.dedup();
        listing.broken.sort_by(|a, b| a.0.cmp(&b.0));
        listing.broken.dedup();
        listing
    }

    /// The model of a name, in upper or lower case. The tag may be left out where
    /// there is only one, or one called `latest`.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, name: &str) -> Result<FoundModel, FindError> {
        let listing = self.list();
        let wanted = name.to_lowercase();
        let is = |full: &str, wanted: &str| full.to_lowercase() == wanted;
        let latest = format!("{wanted}:latest");
        for wanted in [&wanted, &latest] {
            let exact: Vec<&FoundModel> = (listing.models.iter())
                .filter(|model| is(&model.name, wanted))
                .collect();
            if let [model] = exact[..] {
                return Ok(model.clone());
            }
            if let Some(model) = exact.first() {
                // The same name in several stores: the same repository, most likely.
                return Ok((*model).clone());
            }
            if let Some((_, problem)) = listing.broken.iter().find(|(n, _)| is(n, wanted)) {
                return Err(FindError::Broken {
                    name: name.to_owned(),
                    problem: problem.clone(),
                });
            }
        }
        let untagged = |full: &str| {
            let full = full.to_lowercase();
            full.rsplit_once(':').map(|(base, _)| base.to_owned())
        };
        let base: Vec<&FoundModel> = (listing.models.iter())
            .filter(|model| untagged(&model.name).as_ref() == Some(&wanted))
            .collect();
        match base[..] {
            [model] => Ok(model.clone()),
            [] => Err(FindError::Unknown {
                name: name.to_owned(),
                near: (listing.models.iter())
                    .filter(|model| {
                        let full = model.name.to_lowercase();
                        let base = wanted.split(':').next().unwrap_or(&wanted);
                        full.contains(base)
                    })
                    .map(|model| model.name.clone())
                    .take(5)
                    .collect(),
            }),
            _ => Err(FindError::Ambiguous {
                name: name.to_owned(),
                names: base.iter().map(|model| model.name.clone()).collect(),
            }),
        }
    }
}

/// Words in the names of GGUF files that are no models of their own, as llama.cpp has them:
/// matrices for quantizing, heads and models that draft.
const BESIDE_MODELS: [&str; 5] = ["imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// What a GGUF file is, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    /// Without what says that it is a GGUF file, or a part of one.
    pub stem: String,
    /// What says how it is quantized, such as `Q4_K_M`; the stem if nothing does.
    pub tag: String,
    /// Number, from 1, and count, if it is a part of a split model.
    pub part: Option<(usize, usize)>,
}

impl FileName {
    /// `None` if it is no model: no GGUF file, or one that goes with a model.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let is_beside = |word: &&str| name.contains(*word);
        let goes_with_one = lower.contains("mmproj") || BESIDE_MODELS.iter().any(is_beside);
        if !lower.ends_with(".gguf") || goes_with_one {
            return None;
        }
        let stem = files::stem(Path::new(name));
        Some(Self {
            tag: files::tag(&stem),
            part: files::part(name).map(|(_, number, count)| (number, count)),
            stem,
        })
    }
}

/// Whether this is a SHA-256 in hexadecimal.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether somebody who writes this means a file, not a name.
#[must_use]
pub fn is_path(model: &Path) -> bool {
    let text = model.to_string_lossy();
    model.exists()
        || model.is_absolute()
        || text.starts_with('.')
        || text.to_lowercase().ends_with(".gguf")
        || text.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_where_to_look() {
        let plain = Stores::of(|name| (name == "HOME").then(|| "/home/ada".into()));
        assert_eq!(plain.ollama[0], Path::new("/home/ada/.ollama/models"));
        assert_eq!(
            plain.hugging_face,
            [Path::new("/home/ada/.cache/huggingface/hub")]
        );
        assert_eq!(plain.lm_studio[0], Path::new("/home/ada/.lmstudio/models"));
        let set = Stores::of(|name| match name {
            "OLLAMA_MODELS" => Some("/big/ollama".into()),
            "HF_HOME" => Some("/big/hf".into()),
            "LLAMA_CACHE" => Some("/big/llama".into()),
            "HF_HUB_CACHE" => Some("".into()),
            _ => None,
        });
        let places = Places(|name: &str| match name {
            "HF_HUB_CACHE" => Some("/big/hub".into()),
            "HOME" => Some("/home/ada".into()),
            _ => None,
        });
        let home = places.hugging_face();
        assert_eq!(
            home.as_deref(),
            Some(Path::new("/home/ada/.cache/huggingface"))
        );
        assert_eq!(set.ollama, [Path::new("/big/ollama")]);
        assert_eq!(set.hugging_face, [Path::new("/big/hf/hub")]);
        assert_eq!(set.llama_cpp, [Path::new("/big/llama")]);
        assert!(set.lm_studio.is_empty());
    }

    #[test]
    fn paths_are_told_from_names() {
        for path in ["model.gguf", "./model", "/m", "dir/Model.GGUF"] {
            assert!(is_path(Path::new(path)), "{path}");
        }
        for name in ["llama3.2:3b", "bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M"] {
            assert!(!is_path(Path::new(name)), "{name}");
        }
    }
}
