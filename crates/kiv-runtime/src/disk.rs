//! Opening a session's folder.

use crate::cold::Scratch;
use crate::error::Error;
use crate::model::Model;
use crate::options::{Disk, Positions, Rope, SessionOptions};
use kiv_context::{ContextError, DiskOptions, DiskTier, Identity};
use kiv_gguf::ModelFile;
use kiv_policy::Geometry;
use kiv_pool::PoolLayout;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Opens the folder that the options name.
pub(crate) fn open_disk(
    model: &Model,
    disk: &Disk,
    options: &SessionOptions,
    geometry: &Geometry,
    layout: &PoolLayout,
) -> Result<(DiskTier, Option<Scratch>), Error> {
    let (folder, scratch) = match disk {
        Disk::Kept(folder) | Disk::Borrowed(folder) => (folder.clone(), None),
        Disk::Scratch(parent) => {
            let folder = scratch(parent)?;
            (folder.clone(), Some(Scratch(folder)))
        }
    };
    let identity = if scratch.is_some() {
        Identity::new([0; 32], String::new(), geometry, Vec::new())
    } else {
        identity(model, options, geometry, layout)?
    };
    let options = DiskOptions {
        folder,
        host_limit: options.host_limit,
    };
    let tier = match disk {
        Disk::Borrowed(_) => DiskTier::borrow(&options, identity)?,
        Disk::Kept(_) | Disk::Scratch(_) => DiskTier::open(&options, identity)?,
    };
    Ok((tier, scratch))
}

/// What names of folders of sessions' own begin with; process and number follow.
const SCRATCH: &str = "scratch-";

/// Removes what processes have left that were killed.
fn sweep(parent: &Path) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let numbers = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
        let numbers = numbers.and_then(|numbers| numbers.split_once('-'));
        if numbers.is_some_and(|(process, number)| is_number(process) && is_number(number)) {
            let _ = kiv_context::remove_left(&entry.path());
        }
    }
}

/// A new folder below `parent`.
fn scratch(parent: &Path) -> Result<PathBuf, Error> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let io = |source| ContextError::Io {
        action: "make a folder in",
        path: parent.to_owned(),
        source,
    };
    std::fs::create_dir_all(parent).map_err(io)?;
    sweep(parent);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("{SCRATCH}{}-{number}", std::process::id()));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error).into()),
        }
    }
}

/// What a context of this session belongs to. Everything that changes what rows
/// or cells mean is in it.
fn identity(
    model: &Model,
    options: &SessionOptions,
    geometry: &Geometry,
    layout: &PoolLayout,
) -> Result<Identity, Error> {
    let file = ModelFile::open(model.path())?;
    let fingerprint = file.fingerprint()?;
    let Rope {
        scaling,
        freq_base,
        freq_scale,
    } = options.rope;
    let scaling = scaling.map_or("the model's".to_owned(), |s| {
        format!("{s:?}").to_lowercase()
    });
    let settings = [
        ("--cache-type-k", options.type_k.to_string()),
        ("--cache-type-v", options.type_v.to_string()),
        ("--kv-window", options.pool.window.to_string()),
        ("--kv-budget", options.pool.budget.to_string()),
        ("--ubatch-size", options.pool.ubatch.to_string()),
        ("--rope-scaling", scaling),
        ("--rope-freq-base", freq_base.to_string()),
        ("--rope-freq-scale", freq_scale.to_string()),
        ("a pool of cells", layout.n_cells.to_string()),
    ];
    let mut settings = settings
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
    if options.positions == Positions::Remapped {
        let name = options.positions.name().to_owned();
        settings.push(("--kv-pos".to_owned(), name));
    }
    let title = file.title(&fingerprint);
    Ok(Identity::new(fingerprint, title, geometry, settings))
}
