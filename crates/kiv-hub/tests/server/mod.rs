//! A small hub on the loopback that speaks the real one's protocol, and can be told to
//! misbehave.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the hub holds and how it misbehaves.
pub struct State {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The list says nothing of lengths and checksums: they are asked for.
    pub plain_list: bool,
    /// Bytes after which a body ends, for the next bodies.
    pub cuts: Vec<usize>,
    /// Instead of closing the connection there, nothing more comes for this long.
    pub stall: Option<Duration>,
    /// Ranges are ignored.
    pub whole: bool,
    /// Told instead of the right checksum.
    pub checksum: Option<String>,
    /// Told instead of the right length.
    pub length: Option<u64>,
    /// Answered to everything.
    pub status: Option<u16>,
    /// Answered to whoever wants bytes of files, once the cuts are over.
    pub file_status: Option<u16>,
    /// Put into `x-error-code`.
    pub error_code: &'static str,
    /// The token that it wants.
    pub token: Option<String>,
    /// Requests so far: `HEAD /path`, of bytes with where they begin.
    pub asked: Vec<String>,
}

/// The hub; and another server, with another port, that holds its large files.
#[derive(Clone)]
pub struct Server {
    pub state: Arc<Mutex<State>>,
    pub address: String,
    store: String,
}

struct Request {
    verb: String,
    path: String,
    from: Option<usize>,
    token: Option<String>,
}

impl Server {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |of: &TcpListener| format!("http://{}", of.local_addr().unwrap());
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec()));
        let state = State {
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            files: files.collect(),
            plain_list: false,
            cuts: Vec::new(),
            stall: None,
            whole: false,
            checksum: None,
            length: None,
            status: None,
            file_status: None,
            error_code: "",
            token: None,
            asked: Vec::new(),
        };
        let server = Self {
            state: Arc::new(Mutex::new(state)),
            address: address(&hub),
            store: address(&store),
        };
        for (listener, is_store) in [(hub, false), (store, true)] {
            let own = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let own = own.clone();
                    // Whoever goes away is no fault of the hub.
                    std::thread::spawn(move || own.answer(stream, is_store));
                }
            });
        }
        server
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// The same hub when the network is gone.
    pub fn gone(&self) -> Self {
        Self {
            address: "http://127.0.0.1:9".to_owned(),
            ..self.clone()
        }
    }

    /// Requests since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn answer(&self, stream: TcpStream, is_store: bool) -> Result<()> {
        let request = read(&stream)?;
        if is_store {
            return self.bytes(&request, stream);
        }
        let mut out = stream;
        let mut state = self.state.lock().unwrap();
        let refused = (state.status).or_else(|| (state.token != request.token).then_some(401));
        let code = format!("x-error-code: {}\r\n", state.error_code);
        let path = request.path.split('?').next().unwrap_or_default();
        if let Some(status) = refused {
            return head(&mut out, status, &code, 0);
        }
        if path == "/api/models/ada/model/revision/main" {
            state.asked.push("list".to_owned());
            let body = list(&state);
            head(
                &mut out,
                200,
                "content-type: application/json\r\n",
                body.len(),
            )?;
            return out.write_all(body.as_bytes());
        }
        let place = format!("/ada/model/resolve/{}/", state.commit);
        let name = path.strip_prefix(&place).unwrap_or_default();
        let Some(bytes) = state.files.get(&name.replace("%20", " ")).cloned() else {
            return head(&mut out, 404, "x-error-code: EntryNotFound\r\n", 0);
        };
        if request.verb == "HEAD" {
            state.asked.push(format!("HEAD {name}"));
        }
        let about = format!(
            "x-repo-commit: {}\r\nx-linked-etag: \"{}\"\r\nx-linked-size: {}\r\n\
             location: {}/{name}\r\n",
            state.commit,
            state.checksum.clone().unwrap_or_else(|| sha256(&bytes)),
            state.length.unwrap_or(bytes.len() as u64),
            self.store,
        );
        head(&mut out, 302, &about, 0)
    }

    /// What the store of large files answers.
    fn bytes(&self, request: &Request, mut out: TcpStream) -> Result<()> {
        assert_eq!(request.token, None, "the token is for the hub alone");
        let mut state = self.state.lock().unwrap();
        let name = request.path[1..].replace("%20", " ");
        let (whole, stall) = (state.whole, state.stall);
        let from = request.from.unwrap_or(0);
        state.asked.push(format!("{name} {from}"));
        if let Some(status) = state.file_status.filter(|_| state.cuts.is_empty()) {
            return head(&mut out, status, "", 0);
        }
        let cut = (!state.cuts.is_empty()).then(|| state.cuts.remove(0));
        let all = state.files[&name].clone();
        drop(state);
        let (body, status, range) = if whole || request.from.is_none() {
            (&all[..], 200, String::new())
        } else {
            let last = all.len() - 1;
            let range = format!("content-range: bytes {from}-{last}/{}\r\n", all.len());
            (&all[from..], 206, range)
        };
        head(&mut out, status, &range, body.len())?;
        let Some(cut) = cut else {
            return out.write_all(body);
        };
        out.write_all(&body[..cut.min(body.len())])?;
        if let Some(stall) = stall {
            std::thread::sleep(stall);
        }
        Ok(())
    }
}

fn read(stream: &TcpStream) -> Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let mut next = || words.next().unwrap_or_default();
    let mut request = Request {
        verb: next(),
        path: next(),
        from: None,
        token: None,
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let header = line.trim().to_lowercase();
        if header.is_empty() {
            return Ok(request);
        }
        if let Some(range) = header.strip_prefix("range: bytes=") {
            request.from = range.trim_end_matches('-').parse().ok();
        }
        if let Some(given) = header.strip_prefix("authorization: bearer ") {
            request.token = Some(given.to_owned());
        }
    }
}

fn head(out: &mut TcpStream, status: u16, more: &str, length: usize) -> Result<()> {
    write!(
        out,
        "HTTP/1.1 {status} X\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n"
    )
}

fn list(state: &State) -> String {
    let files = state.files.iter().map(|(name, bytes)| {
        if state.plain_list || !name.ends_with(".gguf") {
            return format!(r#"{{"rfilename":"{name}"}}"#);
        }
        let sha256 = state.checksum.clone().unwrap_or_else(|| sha256(bytes));
        let size = state.length.unwrap_or(bytes.len() as u64);
        format!(r#"{{"rfilename":"{name}","lfs":{{"size":{size},"sha256":"{sha256}"}}}}"#)
    });
    let files = files.collect::<Vec<_>>().join(",");
    format!(r#"{{"sha":"{}","siblings":[{files}]}}"#, state.commit)
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
