//! Downloads from a small hub on the loopback, which can be told to fail.

mod server;

use kiv_hub::{Fetched, Hub, HubError, Note, Patience, Wanted, Watch};
use server::{Server, sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const NAME: &str = "model-Q4_K_M.gguf";

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 % 251) as u8).collect()
}

/// Short, so that tests are.
const PATIENCE: Patience = Patience {
    retries: 2,
    pause: Duration::from_millis(1),
    stall: Duration::from_secs(5),
};

/// Remembers what it is told.
#[derive(Default)]
struct Told {
    begun: Vec<(String, u64)>,
    at: u64,
    ended: usize,
    notes: Vec<String>,
}

impl Watch for Told {
    fn begin(&mut self, name: &str, bytes: u64) {
        self.begun.push((name.to_owned(), bytes));
    }
    fn at(&mut self, bytes: u64) {
        self.at = bytes;
    }
    fn end(&mut self) {
        self.ended += 1;
    }
    fn note(&mut self, note: &Note) {
        self.notes.push(note.to_string());
    }
}

fn hub(server: &Server, cache: &Path) -> Hub {
    let hub = Hub::new(&server.address, None, cache).unwrap();
    hub.patience(PATIENCE)
}

fn fetch(server: &Server, cache: &Path, what: &str) -> Result<Fetched, HubError> {
    hub(server, cache).fetch(&Wanted::parse(what, None)?, &mut ())
}

fn fetch_told(server: &Server, cache: &Path) -> (Result<Fetched, HubError>, Told) {
    let mut told = Told::default();
    let wanted = Wanted::parse("ada/model", None).unwrap();
    (hub(server, cache).fetch(&wanted, &mut told), told)
}

fn model() -> (Server, TempDir) {
    let server = Server::start(&[
        ("README.md", b"text"),
        ("mmproj-model-F16.gguf", b"a projector"),
        (NAME, &bytes(300_000)),
        ("model-Q8_0.gguf", &bytes(400_000)),
    ]);
    (server, TempDir::new().unwrap())
}

fn blob(cache: &Path, content: &[u8]) -> PathBuf {
    cache.join("models--ada--model/blobs").join(sha256(content))
}

fn part(cache: &Path, content: &[u8]) -> PathBuf {
    let name = format!("{}.incomplete", sha256(content));
    blob(cache, content).with_file_name(name)
}

fn read(fetched: &Fetched) -> Vec<u8> {
    std::fs::read(&fetched.path).unwrap()
}

#[test]
fn a_model_comes_once_and_lies_where_others_look() {
    let (server, cache) = model();
    let (fetched, told) = fetch_told(&server, cache.path());
    let fetched = fetched.unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
    assert_eq!((fetched.downloaded, fetched.name.as_str()), (1, NAME));
    assert_eq!(told.begun, [(NAME.to_owned(), 300_000)]);
    assert_eq!((told.at, told.ended), (300_000, 1));
    assert_eq!(told.notes, [""; 0]);

    let commit = server.state.lock().unwrap().commit.clone();
    let root = cache.path().join("models--ada--model");
    let main = std::fs::read_to_string(root.join("refs/main")).unwrap();
    assert_eq!(main, commit);
    assert_eq!(fetched.path, root.join("snapshots").join(commit).join(NAME));
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(&fetched.path).unwrap(),
        Path::new("../../blobs").join(sha256(&bytes(300_000)))
    );
    let stores = kiv_models::Stores {
        hugging_face: vec![cache.path().to_owned()],
        ..kiv_models::Stores::default()
    };
    let found = stores.find("ada/model:Q4_K_M").unwrap();
    assert_eq!(found.path, fetched.path);
    assert_eq!(found.verify(), Ok(true));

    // Nothing of it is asked for again.
    server.asked();
    let again = fetch(&server, cache.path(), "ada/model:q4_k_m").unwrap();
    assert_eq!((again.downloaded, &again.path), (0, &fetched.path));
    assert_eq!(server.asked(), ["list"]);
}

#[test]
fn without_a_network_the_cache_will_do() {
    let (server, cache) = model();
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    let gone = server.gone();
    let offline = fetch(&gone, cache.path(), "ada/model").unwrap();
    assert_eq!(offline.path, fetched.path);
    assert!(offline.offline.unwrap().contains("cannot be reached"));
    let error = fetch(&gone, cache.path(), "ada/model:Q8_0").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(
        text.contains("ada/model:Q8_0 is not in the cache"),
        "{text}"
    );
    assert!(text.contains("Check the network"), "{text}");
    // Nor does a hub that is out of order hinder anybody.
    server.set(|state| state.status = Some(503));
    let offline = fetch(&server, cache.path(), "ada/model").unwrap();
    assert!(offline.offline.unwrap().contains("503"));
    // What was downloaded of an older commit is there as well.
    server.set(|state| {
        state.status = None;
        state.commit = "fedcba".to_owned();
    });
    fetch(&server, cache.path(), "ada/model:Q8_0").unwrap();
    let older = fetch(&gone, cache.path(), "ada/model:Q4_K_M").unwrap();
    assert_eq!(read(&older), bytes(300_000));
    // Whoever forbids downloads is obeyed.
    server.asked();
    let offline = |what: &str| {
        let wanted = Wanted::parse(what, None).unwrap();
        let hub = hub(&server, cache.path()).offline(true);
        hub.fetch(&wanted, &mut ())
    };
    assert_eq!(read(&offline("ada/model:Q8_0").unwrap()), bytes(400_000));
    let error = offline("ada/model:IQ1_S").unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(server.asked(), [""; 0]);
}

/// A user other than root, in a cache of somebody else's.
#[test]
#[cfg(unix)]
fn what_is_there_will_do_where_nothing_can_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let (server, cache) = model();
    let first = fetch(&server, cache.path(), "ada/model").unwrap();
    let root = cache.path().join("models--ada--model");
    let may = |folder: &str, mode| {
        let to = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(root.join(folder), to).unwrap();
    };
    // The blob is there, under an older commit.
    server.set(|state| state.commit = "abc123".to_owned());
    may("snapshots", 0o555);
    let is_root = std::fs::create_dir(root.join("snapshots/try")).is_ok();
    let there = fetch(&server, cache.path(), "ada/model").unwrap();
    may("snapshots", 0o755);
    if is_root {
        return;
    }
    assert_eq!(there.path, first.path);
    let why = there.offline.unwrap();
    assert!(
        why.contains("cannot write") && why.contains("abc123"),
        "{why}"
    );
    // Only that `main` is there cannot be said.
    may("refs", 0o555);
    let new = fetch(&server, cache.path(), "ada/model").unwrap();
    may("refs", 0o755);
    assert_eq!((new.offline.as_deref(), new.downloaded), (None, 0));
    assert!(new.path.to_str().unwrap().contains("abc123"));
}

#[test]
fn a_newer_commit_with_the_same_file_brings_no_download() {
    let (server, cache) = model();
    let first = fetch(&server, cache.path(), "ada/model").unwrap();
    server.set(|state| state.commit = "abc123".to_owned());
    server.asked();
    let second = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(
        (second.downloaded, server.asked()),
        (0, vec!["list".into()])
    );
    assert_ne!(first.path, second.path);
    assert_eq!(read(&second), bytes(300_000));
    // Nor does one who changes the file and forgets the commit go unnoticed.
    server.set(|state| {
        state.files.insert(NAME.to_owned(), vec![7; 300_000]);
    });
    let changed = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!((changed.downloaded, changed.path == second.path), (1, true));
    assert_eq!(read(&changed), [7; 300_000]);
    // And one with another file does.
    server.set(|state| {
        state.commit = "def456".to_owned();
        state.files.insert(NAME.to_owned(), bytes(300_001));
    });
    let third = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(third.downloaded, 1);
    assert_eq!(read(&third), bytes(300_001));
}

#[test]
fn a_cut_connection_is_taken_up_again() {
    let (server, cache) = model();
    server.set(|state| state.cuts = vec![100_000, 0, 50_000, 1]);
    let (fetched, told) = fetch_told(&server, cache.path());
    assert_eq!(read(&fetched.unwrap()), bytes(300_000));
    let expected: Vec<String> = [0, 100_000, 100_000, 150_000, 150_001]
        .map(|from| format!("{NAME} {from}"))
        .into();
    assert_eq!(server.asked()[1..], expected);
    assert_eq!(told.notes.len(), 4, "{:?}", told.notes);
    assert!(told.notes[0].ends_with("trying again"), "{:?}", told.notes);
}

#[test]
fn a_later_call_goes_on_with_what_has_come() {
    let (server, cache) = model();
    server.set(|state| {
        state.cuts = vec![100_000];
        state.file_status = Some(503);
    });
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::CutOff { .. }), "{error}");
    for what in [NAME, "100000 of 300000 bytes", "503", "The same command"] {
        assert!(text.contains(what), "{text}");
    }
    let left = std::fs::read(part(cache.path(), &bytes(300_000))).unwrap();
    assert_eq!(left, bytes(300_000)[..100_000]);
    // What is not complete is no model.
    assert!(fetch(&server.gone(), cache.path(), "ada/model").is_err());

    server.set(|state| state.file_status = None);
    server.asked();
    let (fetched, told) = fetch_told(&server, cache.path());
    assert_eq!(read(&fetched.unwrap()), bytes(300_000));
    assert_eq!(server.asked()[1..], [format!("{NAME} 100000")]);
    assert!(told.notes[0].contains("100000 bytes are there"));
    assert!(!part(cache.path(), &bytes(300_000)).exists());
}

#[test]
fn a_stalled_connection_is_given_up() {
    let (server, cache) = model();
    server.set(|state| {
        state.cuts = vec![100_000];
        state.stall = Some(Duration::from_secs(30));
    });
    let patience = Patience {
        stall: Duration::from_millis(300),
        // A slow machine may need a while for its first byte.
        retries: 50,
        ..PATIENCE
    };
    let hub = hub(&server, cache.path()).patience(patience);
    let wanted = Wanted::parse("ada/model", None).unwrap();
    let fetched = hub.fetch(&wanted, &mut ()).unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
    assert!(server.asked().contains(&format!("{NAME} 100000")));
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let (server, cache) = model();
    server.set(|state| {
        state.whole = true;
        state.cuts = vec![100_000];
    });
    let (fetched, told) = fetch_told(&server, cache.path());
    assert_eq!(read(&fetched.unwrap()), bytes(300_000));
    assert_eq!((told.at, told.ended), (300_000, 1));
    assert!(told.notes[1].contains("from the start"), "{:?}", told.notes);
    // One that always breaks off is not asked for ever.
    server.set(|state| state.cuts = vec![100_000; 50]);
    let error = fetch(&server, cache.path(), "ada/model:Q8_0").unwrap_err();
    assert!(matches!(error, HubError::CutOff { .. }), "{error}");
    assert!(server.state.lock().unwrap().cuts.len() > 40);
}

#[test]
fn what_was_left_too_long_is_begun_anew() {
    let (server, cache) = model();
    let part = part(cache.path(), &bytes(300_000));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, vec![1; 300_001]).unwrap();
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
    // All of it there but for the name.
    let all = blob(cache.path(), &bytes(300_000));
    std::fs::rename(all, &part).unwrap();
    server.asked();
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
    assert_eq!(server.asked(), ["list"]);
}

#[test]
fn all_parts_of_a_split_model_come() {
    let names = [1, 2, 3].map(|i| format!("q 4/model-Q4_K_M-0000{i}-of-00003.gguf"));
    let contents = [1000, 2000, 3000].map(bytes);
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&contents)
        .map(|(name, content)| (name.as_str(), &content[..]))
        .collect();
    let (server, cache) = (Server::start(&files), TempDir::new().unwrap());
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(fetched.downloaded, 3);
    assert_eq!(fetched.name, names[0]);
    for (name, content) in files {
        let own = name.rsplit('/').next().unwrap();
        let part = fetched.path.with_file_name(own);
        assert_eq!(std::fs::read(part).unwrap(), content);
    }
    // One that is lost comes again, and is missed without a network.
    std::fs::remove_file(blob(cache.path(), &contents[1])).unwrap();
    let error = fetch(&server.gone(), cache.path(), "ada/model").unwrap_err();
    assert!(error.to_string().contains("not in the cache"), "{error}");
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(fetched.downloaded, 1);
    fetch(&server.gone(), cache.path(), "ada/model").unwrap();
}

#[test]
fn a_hub_that_lists_names_only_is_asked_about_the_file() {
    let (server, cache) = model();
    server.set(|state| state.plain_list = true);
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
    let asked = [
        "list".to_owned(),
        format!("HEAD {NAME}"),
        format!("{NAME} 0"),
    ];
    assert_eq!(server.asked(), asked);
    fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(server.asked(), asked[..2]);
    // The checksum is compared here too.
    server.set(|state| state.checksum = Some("ab".repeat(32)));
    let error = fetch(&server, cache.path(), "ada/model:Q8_0").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    server.set(|state| state.checksum = Some("../../evil".to_owned()));
    let error = fetch(&server, cache.path(), "ada/model:Q8_0").unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
}

#[test]
fn what_is_wrong_is_told_and_removed() {
    let (server, cache) = model();
    server.set(|state| state.checksum = Some("ab".repeat(32)));
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    assert!(error.to_string().contains(NAME), "{error}");
    assert!(error.to_string().contains("try again"), "{error}");
    let blobs = cache.path().join("models--ada--model/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
    assert!(fetch(&server.gone(), cache.path(), "ada/model").is_err());
    // A part that another program left in disorder is found out, too.
    server.set(|state| state.checksum = None);
    let part = part(cache.path(), &bytes(300_000));
    std::fs::write(&part, vec![1; 1000]).unwrap();
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(read(&fetched), bytes(300_000));
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = model();
    let error = |what: &str| fetch(&server, cache.path(), what).unwrap_err().to_string();
    let text = error("ada/model:IQ1_S");
    assert!(
        text.contains("model-Q8_0.gguf") && !text.contains("mmproj"),
        "{text}"
    );
    let wanted = Wanted::parse("ada/model", Some("model-Q5_0.gguf")).unwrap();
    let text = hub(&server, cache.path()).fetch(&wanted, &mut ());
    let text = text.unwrap_err().to_string();
    assert!(
        text.contains("model-Q5_0.gguf; it has model-Q4_K_M.gguf"),
        "{text}"
    );
    assert!(error("ada/nothing").contains("no ada/nothing on the hub"));
    server.set(|state| state.status = Some(503));
    assert!(error("ada/model").contains("503"));
    server.set(|state| state.status = Some(403));
    let text = error("ada/model");
    assert!(
        text.contains("set HF_TOKEN") && text.contains("/ada/model and"),
        "{text}"
    );
    // To strangers the hub says 401 of repositories that are not there.
    server.set(|state| {
        state.status = Some(401);
        state.error_code = "RepoNotFound";
    });
    assert!(error("ada/model").contains("check the spelling"));
    server.set(|state| {
        state.status = None;
        state.error_code = "GatedRepo";
        state.token = Some("secret".to_owned());
    });
    assert!(error("ada/model").contains("set HF_TOKEN"));
    // With the right token all is well; the server sees to it that the store of large
    // files does not get it.
    let with = |token: &str| {
        let hub = Hub::new(&server.address, Some(token.to_owned()), cache.path()).unwrap();
        hub.fetch(&Wanted::parse("ada/model", None).unwrap(), &mut ())
    };
    let text = with("wrong").unwrap_err().to_string();
    assert!(text.contains("check that HF_TOKEN"), "{text}");
    assert_eq!(read(&with("secret").unwrap()), bytes(300_000));
    // Of gated repositories everybody may see the list.
    server.set(|state| {
        state.token = None;
        state.file_status = Some(403);
    });
    let text = error("ada/model:Q8_0");
    assert!(
        text.contains("model-Q8_0.gguf is not open") && text.contains("set HF_TOKEN"),
        "{text}"
    );
    // Gone between the list and the file.
    server.set(|state| state.file_status = Some(404));
    let text = error("ada/model:Q8_0");
    assert!(text.contains("model-Q8_0.gguf"), "{text}");
}

#[test]
fn of_two_that_want_the_same_one_waits() {
    let (server, cache) = model();
    server.set(|state| {
        state.cuts = vec![100_000];
        state.stall = Some(Duration::from_millis(700));
    });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| fetch_told(&server, cache.path()));
        while server.state.lock().unwrap().cuts.len() == 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (second, told) = fetch_told(&server, cache.path());
        let second = second.unwrap();
        assert_eq!((second.downloaded, read(&second)), (0, bytes(300_000)));
        assert!(
            told.notes[0].contains("another program"),
            "{:?}",
            told.notes
        );
        assert_eq!(first.join().unwrap().0.unwrap().downloaded, 1);
    });
}

#[cfg(unix)]
#[test]
fn what_does_not_fit_the_disk_is_told_first() {
    let (server, cache) = model();
    server.set(|state| state.length = Some(1 << 60));
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::NoRoom { .. }), "{error}");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
    assert_eq!(server.asked(), ["list"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_is_told() {
    let (server, cache) = model();
    let part = part(cache.path(), &bytes(300_000));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    // A file that is always full.
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Full { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("disk is full") && text.contains("is kept"),
        "{text}"
    );
    assert!(part.is_symlink());
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let (server, _) = model();
    // Nobody, root neither, makes folders there.
    let error = fetch(&server, Path::new("/proc/cache"), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Disk { .. }), "{error}");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
}
