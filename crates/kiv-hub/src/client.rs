//! Requests: redirects, the token, and what refusals mean.

use crate::HubError;
use serde::Deserialize;
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// Longest answer about a repository; those of thousands of files have some 1 MB.
const MAX_ANSWER: u64 = 64 << 20;

/// Redirects that are followed; the hub has two.
const MAX_REDIRECTS: usize = 10;

/// Who speaks to a hub.
pub(crate) struct Client {
    agent: Agent,
    /// Its address, without a slash at the end.
    pub endpoint: String,
    token: Option<String>,
}

/// A repository as the hub describes it.
#[derive(Deserialize)]
pub(crate) struct Listing {
    /// The commit that `main` is at.
    pub sha: String,
    #[serde(default)]
    pub siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
pub(crate) struct Sibling {
    pub rfilename: String,
    pub lfs: Option<Lfs>,
}

#[derive(Deserialize)]
pub(crate) struct Lfs {
    pub size: u64,
    #[serde(alias = "oid")]
    pub sha256: String,
}

/// What the hub says of a file.
pub(crate) struct Stated {
    /// What its blob is called in the cache: the SHA-256 of what LFS keeps.
    pub etag: String,
    pub bytes: u64,
}

impl Client {
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Self, HubError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let authority = ["http://", "https://"]
            .iter()
            .find_map(|scheme| endpoint.strip_prefix(scheme))
            .filter(|rest| !rest.is_empty());
        let Some(authority) = authority else {
            return Err(HubError::Endpoint { endpoint });
        };
        let mut config = Agent::config_builder()
            // Redirects are followed here, for the token goes to the hub alone.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("kiv/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)));
        let own = ["127.", "localhost", "[::1]"];
        if own.iter().any(|host| authority.starts_with(host)) {
            // A proxy has another loopback.
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            token,
        })
    }

    /// Where a file of a commit is.
    pub fn file_url(&self, repo: &str, commit: &str, name: &str) -> String {
        format!(
            "{}/{repo}/resolve/{commit}/{}",
            self.endpoint,
            escaped(name)
        )
    }

    /// All files of a repository's `main`.
    pub fn list(&self, repo: &str) -> Result<Listing, HubError> {
        let url = format!(
            "{}/api/models/{repo}/revision/main?blobs=true",
            self.endpoint
        );
        let limit = Some(Duration::from_secs(60));
        let mut response = self.send(Verb::Get(None, limit), url, |_| false)?;
        if !response.status().is_success() {
            return Err(self.refused(&response, repo, None));
        }
        let bad = |why: String| HubError::Answer {
            what: repo.to_owned(),
            why,
        };
        let body = response.body_mut().with_config().limit(MAX_ANSWER);
        let text = body.read_to_string().map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => bad(error.to_string()),
            _ => HubError::unreachable(error.to_string()),
        })?;
        serde_json::from_str(&text).map_err(|error| bad(error.to_string()))
    }

    /// What the hub says of a file that its list is silent about.
    pub fn stated(&self, repo: &str, name: &str, url: &str) -> Result<Stated, HubError> {
        // Whoever keeps large files elsewhere says so on the way there.
        let response = self.send(Verb::Head, url.to_owned(), |response| {
            header(response, "x-linked-etag").is_some()
        })?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refused(&response, repo, Some(name)));
        }
        let bad = |why: &str| HubError::Answer {
            what: format!("{repo}/{name}"),
            why: why.to_owned(),
        };
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
        let etag = etag.ok_or_else(|| bad("it has no ETag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !crate::is_word(&etag) {
            return Err(bad("its ETag cannot be the name of a file"));
        }
        let linked = header(&response, "x-linked-size");
        let bytes = match linked.filter(|_| status.is_redirection()) {
            Some(linked) => Some(linked),
            None => linked.or_else(|| header(&response, "content-length")),
        };
        let bytes = bytes
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| bad("it does not say how long the file is"))?;
        Ok(Stated { etag, bytes })
    }

    /// A file's bytes from one on. The whole answer is to take no longer than `limit`.
    pub fn get(
        &self,
        url: &str,
        from: u64,
        limit: Option<Duration>,
    ) -> Result<Response<Body>, HubError> {
        self.send(Verb::Get(Some(from), limit), url.to_owned(), |_| false)
    }

    /// Sends a request and follows redirects, but for one that is `enough`.
    fn send(
        &self,
        verb: Verb,
        url: String,
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, HubError> {
        let mut url = url;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = match verb {
                Verb::Head => self.agent.head(&url),
                Verb::Get(..) => self.agent.get(&url),
            };
            // Lengths and checksums are of what is stored.
            request = request.header("accept-encoding", "identity");
            if let Some(token) = &self.token
                && origin(&url) == origin(&self.endpoint)
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Verb::Get(from, limit) = verb {
                if let Some(from) = from {
                    request = request.header("range", format!("bytes={from}-"));
                }
                request = request.config().timeout_recv_body(limit).build();
            }
            let response = request
                .call()
                .map_err(|error| HubError::unreachable(format!("{}: {error}", origin(&url))))?;
            if !response.status().is_redirection() || enough(&response) {
                return Ok(response);
            }
            let to = header(&response, "location").unwrap_or_default();
            url = redirected(&url, to).ok_or_else(|| HubError::Answer {
                what: url.clone(),
                why: format!("it leads to {to:?}"),
            })?;
        }
        Err(HubError::Answer {
            what: url,
            why: "it leads on and on".to_owned(),
        })
    }

    /// What a status other than success means.
    pub fn refused(&self, response: &Response<Body>, repo: &str, file: Option<&str>) -> HubError {
        let what = file.map_or(repo.to_owned(), |file| format!("{repo}/{file}"));
        let status = response.status().as_u16();
        let code = header(response, "x-error-code").unwrap_or_default();
        match (status, code) {
            // To those without a token the hub does not tell private ones from none.
            (401 | 404, "RepoNotFound") | (404, _) => HubError::NotFound { what },
            (401 | 403, _) => HubError::Forbidden {
                what,
                status,
                page: format!("{}/{repo}", self.endpoint),
                with_token: self.token.is_some(),
            },
            _ => HubError::Status { what, status },
        }
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Head,
    /// Bytes from one on, and how long the body may take.
    Get(Option<u64>, Option<Duration>),
}

/// A header's text.
pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Scheme and host of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']);
    &url[..end.map_or(url.len(), |end| host + end)]
}

/// Where a redirect leads; nowhere less safe.
fn redirected(from: &str, to: &str) -> Option<String> {
    if to.starts_with('/') && !to.starts_with("//") {
        return Some(format!("{}{to}", origin(from)));
    }
    let safe = to.starts_with("https://");
    let plain = to.starts_with("http://") && from.starts_with("http://");
    (safe || plain).then(|| to.to_owned())
}

/// A path as addresses spell it.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_as_safe() {
        let from = "https://hub.example/a/b?c";
        let to = |to| redirected(from, to);
        assert_eq!(to("/x"), Some("https://hub.example/x".to_owned()));
        assert_eq!(to("https://cdn/x"), Some("https://cdn/x".to_owned()));
        for bad in ["http://cdn/x", "//cdn/x", "x", "file:///x", ""] {
            assert_eq!(to(bad), None, "{bad}");
        }
        let plain = redirected("http://a", "http://b/x");
        assert_eq!(plain, Some("http://b/x".to_owned()));
    }

    #[test]
    fn origins_and_escapes() {
        assert_eq!(origin("https://a.b:8/c/d"), "https://a.b:8");
        assert_eq!(origin("http://a.b?x=/"), "http://a.b");
        assert_ne!(origin("https://hub.evil/x"), origin("https://hub"));
        assert_eq!(escaped("q 4/a#b.gguf"), "q%204/a%23b.gguf");
    }

    #[test]
    fn addresses() {
        for bad in ["", "hub", "ftp://hub", "https://"] {
            assert!(matches!(
                Client::new(bad, None),
                Err(HubError::Endpoint { .. })
            ));
        }
        let client = Client::new("http://[::1]:80/", None).ok().unwrap();
        assert_eq!(
            client.file_url("a/b", "c", "d e"),
            "http://[::1]:80/a/b/resolve/c/d%20e"
        );
    }
}
