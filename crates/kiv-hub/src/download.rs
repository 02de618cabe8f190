//! One file: goes on where it was cut off, and is believed if its SHA-256 is right.

use crate::client::{Client, header};
use crate::{HubError, Note, Patience, Watch};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A file to download.
pub(crate) struct Task<'a> {
    pub repo: &'a str,
    pub name: &'a str,
    pub url: &'a str,
    pub bytes: u64,
    pub sha256: Option<&'a str>,
    /// Where to, until it is complete.
    pub part: PathBuf,
}

/// Why one answer was not all.
enum Stop {
    /// Another try may do.
    Broken(String),
    /// The time for one answer is over.
    Paused,
    /// No try will do.
    Over(HubError),
}

impl Task<'_> {
    /// Downloads the file, or what is missing of it.
    pub fn run(
        &self,
        client: &Client,
        patience: &Patience,
        watch: &mut dyn Watch,
    ) -> Result<(), HubError> {
        let mut sink = Sink::open(&self.part, self.bytes, |from| {
            watch.note(&Note::GoesOn {
                name: self.name,
                from,
            });
        })?;
        watch.begin(self.name, self.bytes);
        watch.at(sink.done);
        // Answers are cut into pieces of time: one without a byte is a stall. A server
        // that knows no ranges would begin anew each time, so it is not asked to.
        let mut limit = Some(patience.stall);
        let (mut best, mut failures) = (sink.done, 0);
        while sink.done < self.bytes {
            let why = match self.answer(client, &mut limit, &mut sink, watch) {
                Ok(()) if sink.done == self.bytes => break,
                Ok(()) => Some("the connection was closed".to_owned()),
                Err(Stop::Broken(why)) => Some(why),
                Err(Stop::Paused) => None,
                Err(Stop::Over(error)) => return Err(error),
            };
            let progress = sink.done > best;
            if progress {
                (best, failures) = (sink.done, 0);
                if why.is_none() {
                    continue;
                }
            } else {
                failures += 1;
            }
            let why = why
                .unwrap_or_else(|| format!("nothing has come for {} s", patience.stall.as_secs()));
            if failures > patience.retries {
                return Err(HubError::CutOff {
                    file: self.name.to_owned(),
                    done: sink.done,
                    bytes: self.bytes,
                    why,
                });
            }
            watch.note(&Note::Again {
                name: self.name,
                why: &why,
            });
            std::thread::sleep((patience.pause * (1 << failures.min(8))).min(LONGEST_PAUSE));
        }
        self.check(sink)?;
        watch.end();
        Ok(())
    }

    /// Writes what one request brings.
    fn answer(
        &self,
        client: &Client,
        limit: &mut Option<Duration>,
        sink: &mut Sink,
        watch: &mut dyn Watch,
    ) -> Result<(), Stop> {
        let response = match client.get(self.url, sink.done, *limit) {
            Ok(response) => response,
            Err(HubError::Unreachable { why, .. }) => return Err(Stop::Broken(why)),
            Err(error) => return Err(Stop::Over(error)),
        };
        match response.status().as_u16() {
            206 if begins_at(header(&response, "content-range"), sink.done) => {}
            // Not from where it was asked for, if it says so or not: from the start.
            status @ (200 | 206 | 416) => {
                *limit = if status == 200 { None } else { *limit };
                if sink.done > 0 {
                    sink.restart().map_err(Stop::Over)?;
                    watch.note(&Note::FromStart { name: self.name });
                    watch.at(0);
                }
                if status != 200 {
                    return Err(Stop::Broken("the hub sent another range".to_owned()));
                }
            }
            status @ (408 | 425 | 429 | 500..) => {
                return Err(Stop::Broken(format!("the hub answered HTTP {status}")));
            }
            _ => {
                let refused = client.refused(&response, self.repo, Some(self.name));
                return Err(Stop::Over(refused));
            }
        }
        let body = response.into_body().into_reader();
        // More than the file has would be wrong anyway.
        let mut body = body.take(self.bytes - sink.done);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    sink.write(&buffer[..n]).map_err(Stop::Over)?;
                    watch.at(sink.done);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(Stop::Paused),
                Err(error) => return Err(Stop::Broken(error.to_string())),
            }
        }
    }

    /// Compares what has come with the checksum, and removes it if it is wrong.
    fn check(&self, sink: Sink) -> Result<(), HubError> {
        sink.file.sync_all().map_err(HubError::disk(&self.part))?;
        let digest = sink.hash.finalize();
        let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        match self.sha256 {
            Some(expected) if expected != found => {
                std::fs::remove_file(&self.part).map_err(HubError::disk(&self.part))?;
                Err(HubError::Checksum {
                    file: format!("{}/{}", self.repo, self.name),
                    expected: expected.to_owned(),
                    found,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Whether `bytes 5-9/10` begins there.
fn begins_at(range: Option<&str>, from: u64) -> bool {
    let range = range.and_then(|text| text.strip_prefix("bytes "));
    let first = range.and_then(|text| text.split('-').next());
    first.is_some_and(|first| first.trim().parse() == Ok(from))
}

fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// A file that grows, and the hash of what is in it.
struct Sink {
    path: PathBuf,
    file: File,
    hash: Sha256,
    done: u64,
}

impl Sink {
    /// Opens what there is of a file of `bytes` bytes; `goes_on` is told how much.
    fn open(path: &Path, bytes: u64, goes_on: impl FnOnce(u64)) -> Result<Self, HubError> {
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.open(path)?;
            let done = file.metadata()?.len();
            Ok((file, done))
        };
        let (file, done) = open().map_err(HubError::disk(path))?;
        let mut sink = Self {
            path: path.to_owned(),
            file,
            hash: Sha256::new(),
            done: 0,
        };
        if done > bytes {
            // Of something else.
            sink.restart()?;
        } else if done > 0 {
            goes_on(done);
            let mut buffer = vec![0; 1 << 20];
            while sink.done < done {
                let read = sink.file.read(&mut buffer).map_err(HubError::disk(path))?;
                if read == 0 {
                    break;
                }
                sink.hash.update(&buffer[..read]);
                sink.done += read as u64;
            }
        }
        Ok(sink)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        let again = self.file.set_len(0).and_then(|()| self.file.rewind());
        again.map_err(HubError::disk(&self.path))?;
        (self.hash, self.done) = (Sha256::new(), 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let written = self.file.write_all(bytes);
        written.map_err(HubError::disk(&self.path))?;
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert!(begins_at(Some("bytes 5-9/10"), 5));
        assert!(begins_at(Some("bytes 0-9/*"), 0));
        for bad in [None, Some("bytes 0-9/10"), Some("bytes */10"), Some("5-9")] {
            assert!(!begins_at(bad, 5), "{bad:?}");
        }
    }
}
