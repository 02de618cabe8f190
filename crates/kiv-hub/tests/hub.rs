//! Downloads from a small hub on the loopback, which can be told to fail.

use kiv_hub::{Fetched, Hub, HubError, Wanted, Watch};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and how it misbehaves.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Bytes of a body after which the connection is dropped, once.
    cut_after: Option<usize>,
    /// Told instead of the right checksum.
    checksum: Option<String>,
    /// Answered to everything.
    status: Option<u16>,
    /// The token that it wants.
    token: Option<String>,
    /// Requests for bytes of files: where they begin.
    asked_from: Vec<usize>,
}

#[derive(Clone, Default)]
struct Server {
    state: Arc<Mutex<State>>,
    address: String,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec()));
        let state = State {
            files: files.collect(),
            ..State::default()
        };
        let server = Self {
            state: Arc::new(Mutex::new(state)),
            address,
        };
        let own = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever goes away is no fault of the hub.
                let _ = own.answer(stream);
            }
        });
        server
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = stream;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let path = path.split('?').next().unwrap_or_default();
        let (mut from, mut token) = (0, None);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let header = line.trim().to_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(range) = header.strip_prefix("range: bytes=") {
                let (first, last) = range.split_once('-').unwrap();
                from = first.parse().unwrap();
                if last == "0" {
                    // Only asks what there is.
                    from = usize::MAX;
                }
            }
            if let Some(given) = header.strip_prefix("authorization: bearer ") {
                token = Some(given.to_owned());
            }
        }
        let mut state = self.state.lock().unwrap();
        let refused = (state.status).or_else(|| (state.token != token).then_some(401));
        if let Some(status) = refused {
            return write!(
                out,
                "HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
        if path.starts_with("/api/models/ada/model") {
            let files = state.files.iter().map(|(name, bytes)| {
                let sha256 = state.checksum.clone().unwrap_or_else(|| sha256(bytes));
                format!(
                    r#"{{"rfilename":"{name}","lfs":{{"size":{},"sha256":"{sha256}"}}}}"#,
                    bytes.len()
                )
            });
            let files = files.collect::<Vec<_>>().join(",");
            let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{files}]}}"#);
            return write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
        }
        let name = path
            .strip_prefix("/ada/model/resolve/main/")
            .unwrap_or_default();
        let Some(bytes) = state.files.get(name).cloned() else {
            return write!(
                out,
                "HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        };
        let asks = from == usize::MAX;
        let body = if asks { &bytes[..1] } else { &bytes[from..] };
        let (first, etag) = (if asks { 0 } else { from }, sha256(&bytes));
        write!(
            out,
            "HTTP/1.1 206 OK\r\nx-repo-commit: {COMMIT}\r\nx-linked-etag: \"{}\"\r\n\
             content-range: bytes {first}-{}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            state.checksum.clone().unwrap_or(etag),
            first + body.len() - 1,
            bytes.len(),
            body.len()
        )?;
        if asks {
            return out.write_all(body);
        }
        state.asked_from.push(from);
        let cut = state.cut_after.take().unwrap_or(body.len());
        out.write_all(&body[..cut.min(body.len())])
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 % 251) as u8).collect()
}

fn fetch(server: &Server, cache: &Path, what: &str) -> Result<Fetched, HubError> {
    let hub = Hub::new(&server.address, None, cache)?;
    hub.fetch(&Wanted::parse(what, None)?, &mut ())
}

fn model() -> Server {
    Server::start(&[
        ("README.md", b"text"),
        ("model-Q4_K_M.gguf", &bytes(300_000)),
        ("model-Q8_0.gguf", &bytes(400_000)),
    ])
}

#[test]
fn a_model_comes_once_and_lies_where_others_look() {
    #[derive(Default)]
    struct Told(u64, u64, bool);
    impl Watch for Told {
        fn begin(&mut self, name: &str, bytes: u64) {
            assert_eq!(name, "model-Q4_K_M.gguf");
            self.0 = bytes;
        }
        fn more(&mut self, bytes: u64) {
            self.1 += bytes;
        }
        fn end(&mut self) {
            self.2 = true;
        }
    }
    let (server, cache) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::new(&server.address, None, cache.path()).unwrap();
    let wanted = Wanted::parse("ada/model", None).unwrap();
    let mut told = Told::default();
    let fetched = hub.fetch(&wanted, &mut told).unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), bytes(300_000));
    assert_eq!((told.0, told.1, told.2), (300_000, 300_000, true));
    assert_eq!(fetched.downloaded, 1);

    let stores = kiv_models::Stores {
        hugging_face: vec![cache.path().to_owned()],
        ..kiv_models::Stores::default()
    };
    let found = stores.find("ada/model:Q4_K_M").unwrap();
    assert_eq!(found.path, fetched.path);
    assert_eq!(found.verify(), Ok(true));

    // Nothing is asked for again; without a network the cache will do.
    let again = fetch(&server, cache.path(), "ada/model:q4_k_m").unwrap();
    assert_eq!((again.downloaded, &again.path), (0, &fetched.path));
    assert_eq!(server.state.lock().unwrap().asked_from, [0]);
    let nobody = Server {
        address: "http://127.0.0.1:9".to_owned(),
        ..Server::default()
    };
    let offline = fetch(&nobody, cache.path(), "ada/model").unwrap();
    assert_eq!(offline.path, fetched.path);
    assert!(offline.offline.unwrap().contains("cannot be reached"));
    let error = fetch(&nobody, cache.path(), "ada/model:Q8_0").unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn a_download_that_was_cut_off_goes_on() {
    let (server, cache) = (model(), tempfile::tempdir().unwrap());
    server.set(|state| state.cut_after = Some(100_000));
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::CutOff { .. }), "{error}");
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), bytes(300_000));
    let asked = server.state.lock().unwrap().asked_from.clone();
    assert_eq!(asked, [0, 100_000]);
}

#[test]
fn all_parts_of_a_split_model_come() {
    let names = [1, 2, 3].map(|i| format!("q4/model-Q4_K_M-0000{i}-of-00003.gguf"));
    let contents = [1000, 2000, 3000].map(bytes);
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&contents)
        .map(|(name, content)| (name.as_str(), &content[..]))
        .collect();
    let (server, cache) = (Server::start(&files), tempfile::tempdir().unwrap());
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(fetched.downloaded, 3);
    for (name, content) in files {
        let own = name.rsplit('/').next().unwrap();
        let part = fetched.path.with_file_name(own);
        assert_eq!(std::fs::read(part).unwrap(), content);
    }
}

#[test]
fn what_is_wrong_is_told_and_removed() {
    let (server, cache) = (model(), tempfile::tempdir().unwrap());
    server.set(|state| state.checksum = Some("ab".repeat(32)));
    let error = fetch(&server, cache.path(), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("model-Q4_K_M.gguf"), "{error}");
    // It is not taken for the model afterwards.
    server.set(|state| state.checksum = None);
    let fetched = fetch(&server, cache.path(), "ada/model").unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), bytes(300_000));
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (model(), tempfile::tempdir().unwrap());
    let error = |what: &str| fetch(&server, cache.path(), what).unwrap_err().to_string();
    assert!(error("ada/model:IQ1_S").contains("model-Q8_0.gguf"));
    assert!(error("ada/nothing").contains("ada/nothing"));
    server.set(|state| state.status = Some(403));
    assert!(error("ada/model").contains("HF_TOKEN"));
    server.set(|state| state.status = Some(503));
    assert!(error("ada/model").contains("503"));
    // With the right token all is well.
    server.set(|state| (state.status, state.token) = (None, Some("secret".to_owned())));
    assert!(error("ada/model").contains("HF_TOKEN"));
    let hub = Hub::new(&server.address, Some("secret".to_owned()), cache.path()).unwrap();
    let wanted = Wanted::parse("ada/model", None).unwrap();
    hub.fetch(&wanted, &mut ()).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let server = model();
    // Nobody, root neither, makes folders there.
    let error = fetch(&server, Path::new("/proc/cache"), "ada/model").unwrap_err();
    assert!(matches!(error, HubError::Disk { .. }), "{error}");
}
