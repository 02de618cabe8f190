//! Who may ask: the key, and which hosts and pages.
//!
//! A page of another site may make a browser send requests to the loopback (and by
//! DNS rebinding even read the answers). So the `Host` must be the loopback's or one
//! that was named, and an `Origin`, which only browsers send, must be of such a host.

use crate::fault::{Fault, Protocol};
use crate::{Shared, web};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

pub(crate) async fn check(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let protocol = Protocol::of(request.uri().path());
    let path = request.uri().path();
    let open = matches!(path, "/health" | "/v1/health") || web::PATHS.contains(&path);
    match refusal(
        request.headers(),
        &app.config.hosts,
        app.config.api_key.as_deref(),
        open,
    ) {
        Some(fault) => fault.answer(protocol),
        None => next.run(request).await,
    }
}

fn refusal(headers: &HeaderMap, hosts: &[String], key: Option<&str>, open: bool) -> Option<Fault> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let forbidden = |message| Some(Fault::new(StatusCode::FORBIDDEN, message));
    if text(header::HOST).is_some_and(|host| !is_known(host, hosts)) {
        return forbidden("requests for this host are not served: start with --allow-host HOST");
    }
    if let Some(origin) = text(header::ORIGIN) {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        if !is_known(host, hosts) {
            return forbidden("pages of this origin may not ask: start with --allow-host HOST");
        }
    }
    let key = key.filter(|_| !open)?;
    let sent = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    let is_sent = |(scheme, sent): (&str, &str)| {
        scheme.eq_ignore_ascii_case("bearer") && equal(sent.trim().as_bytes(), key.as_bytes())
    };
    if sent.is_some_and(is_sent) {
        return None;
    }
    let message = "a wrong key or none: send \"Authorization: Bearer KEY\"";
    Some(Fault::new(StatusCode::UNAUTHORIZED, message))
}

/// Whether a host, with or without a port, is the loopback or was named.
fn is_known(host: &str, hosts: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    let is_loopback = name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    is_loopback
        || hosts
            .iter()
            .any(|known| known == "*" || known.eq_ignore_ascii_case(name))
}

/// Takes the same time wherever two keys of one length differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let named = ["box.example".to_owned()];
        for good in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:1",
            "127.8.8.8",
            "[::1]:80",
            "Box.example:9",
        ] {
            assert!(is_known(good, &named), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "[::2]",
            "null",
        ] {
            assert!(!is_known(bad, &named), "{bad}");
        }
        assert!(is_known("anything", &["*".to_owned()]));
    }

    #[test]
    fn keys() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            headers
        };
        let status = |headers: &HeaderMap, open| {
            refusal(headers, &[], Some("secret"), open).map(|fault| fault.status.as_u16())
        };
        assert_eq!(status(&with("Bearer secret"), false), None);
        assert_eq!(status(&with("bearer  secret"), false), None);
        assert_eq!(status(&with("secret"), false), Some(401));
        assert_eq!(status(&with("Bearer secreT"), false), Some(401));
        assert_eq!(status(&with("Bearer secret2"), false), Some(401));
        assert_eq!(status(&with("Basic secret"), false), Some(401));
        assert_eq!(status(&HeaderMap::new(), false), Some(401));
        assert_eq!(status(&HeaderMap::new(), true), None);
    }
}
