//! Flags of what leaves the window, and of contexts on disk.

use super::{ModelArgs, cache_type};
use clap::{Args, Subcommand};
use kiv_policy::RowFormat;
use std::path::PathBuf;

/// Where rows go that leave the window, and in which types.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// Type of rows in host memory and on disk: f16, q8_0, q4_0, or one for K
    /// and one for V (q8_0,q4_0) [default: the cache's]
    #[arg(long, value_parser = store_types, value_name = "TYPE")]
    pub kv_store: Option<StoreTypes>,
    /// Folder for rows on disk. run and chat keep the context there and go on with
    /// it the next time, serve keeps all of its contexts; other commands remove theirs
    #[arg(long, value_name = "DIR")]
    pub kv_dir: Option<PathBuf>,
    /// Most rows in host memory (500M, 4G): what is used least is on disk only
    #[arg(long, value_parser = size, requires = "kv_dir", value_name = "SIZE")]
    pub kv_host_limit: Option<usize>,
}

/// Types of cold K and V rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreTypes {
    pub k: RowFormat,
    pub v: RowFormat,
}

impl StoreArgs {
    /// Types of cold rows of these caches.
    pub fn types(&self, model: &ModelArgs) -> StoreTypes {
        let cache = StoreTypes {
            k: model.cache_type_k,
            v: model.cache_type_v,
        };
        self.kv_store.unwrap_or(cache)
    }
}

fn store_types(text: &str) -> Result<StoreTypes, String> {
    let (k, v) = text.split_once(',').unwrap_or((text, text));
    Ok(StoreTypes {
        k: cache_type(k)?,
        v: cache_type(v)?,
    })
}

/// Bytes: a number with K, M, G or T (powers of 1024), or none.
fn size(text: &str) -> Result<usize, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let unit = unit
        .trim()
        .trim_end_matches(['b', 'B'])
        .trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err("not a size: try 500M or 4G".to_owned()),
    };
    let wrong = |_| "not a size: try 500M or 4G".to_owned();
    let bytes = number.parse::<f64>().map_err(wrong)? * 2f64.powi(shift);
    if bytes < usize::MAX as f64 {
        Ok(bytes as usize)
    } else {
        Err("more than can be counted".to_owned())
    }
}

#[derive(Debug, Args)]
pub(crate) struct ContextArgs {
    #[command(subcommand)]
    pub command: ContextCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Contexts in a folder and right below it
    List(FolderArgs),
    /// What a context holds and what it belongs to
    Info(FolderArgs),
    /// Check every byte of a context
    Verify(FolderArgs),
    /// Copy a context; the copies share what they have in common
    Fork(ForkArgs),
    /// Remove a context
    Rm(FolderArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// The folder
    #[arg(long, value_name = "DIR")]
    pub kv_dir: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    #[command(flatten)]
    pub from: FolderArgs,
    /// New or empty folder for the copy
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("2K", 2048),
            ("1.5MiB", 3 << 19),
            ("4G", 4 << 30),
            ("1 GB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "4X", "1e3", "9999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
