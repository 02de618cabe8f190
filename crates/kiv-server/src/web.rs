//! The page: static files in the program, which needs nothing from elsewhere.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Paths that are served without a key: there is nothing in them.
pub(crate) const PATHS: [&str; 4] = ["/", "/page.css", "/page.js", "/openapi.json"];

pub(crate) async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("web/index.html"))
}

pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("web/page.css"))
}

pub(crate) async fn script() -> Response {
    file(
        "text/javascript; charset=utf-8",
        include_str!("web/page.js"),
    )
}

pub(crate) async fn openapi() -> Response {
    file("application/json", include_str!("../openapi.json"))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    // What a model or a document says can load and run nothing.
    let policy = "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
