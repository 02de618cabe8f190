//! kiv behind HTTP, for clients that speak to OpenAI, ollama or llama-server.
//!
//! [`router`] gives an axum router to mount in a program of one's own, [`serve`] runs
//! it. All requests go to one [`Engine`]: sessions stay between requests, so what two
//! prompts have in common from the beginning is read once.
//!
//! What a protocol has and kiv has not is refused with the parameter's name, never
//! ignored: an answer must not look as if it had been honoured.

mod answer;
mod ask;
mod calls;
mod engine;
mod fault;
mod guard;
mod library;
mod logprobs;
mod messages;
mod native;
mod ollama;
mod openai;
mod responses;
mod retrieved;
mod thoughts;
mod tools;
mod web;

pub use engine::{
    Counters, Engine, EngineOptions, Event, KeptContexts, Refused, Request, Room, SlotState,
    Summary,
};

pub use retrieved::{Passage, Retrieved};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use kiv_runtime::{ChatTemplate, Model};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

/// Largest body of a request, bytes: a million tokens are some 5 MB of text.
const BODY: usize = 64 << 20;

/// What the server tells and checks.
pub struct Config {
    /// The model's name for clients.
    pub name: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// What tells its file from others: 64 hexadecimal digits.
    pub digest: String,
    /// From messages to text; without it only plain prompts are taken.
    pub template: Option<ChatTemplate>,
    /// Texts that end an answer besides the client's.
    pub stop: Vec<String>,
    /// Most tokens of a conversation.
    pub n_ctx: usize,
    /// What clients must send as a bearer token.
    pub api_key: Option<String>,
    /// Host names that requests may be for, besides the loopback's.
    pub hosts: Vec<String>,
}

/// What handlers share.
pub(crate) struct App {
    pub config: Config,
    pub model: Model,
    pub engine: Engine,
    pub started: SystemTime,
}

pub(crate) type Shared = Arc<App>;

struct Route {
    method: Method,
    path: &'static str,
    handler: MethodRouter<Shared>,
}

impl Route {
    fn get<T: 'static>(path: &'static str, handler: impl Handler<T, Shared>) -> Self {
        Self {
            method: Method::GET,
            path,
            handler: get(handler),
        }
    }

    fn post<T: 'static>(path: &'static str, handler: impl Handler<T, Shared>) -> Self {
        Self {
            method: Method::POST,
            path,
            handler: post(handler),
        }
    }
}

/// All that is served. What it takes and answers is written in `openapi.json`.
fn table() -> Vec<Route> {
    vec![
        Route::get("/", web::index),
        Route::get("/page.css", web::style),
        Route::get("/page.js", web::script),
        Route::get("/openapi.json", web::openapi),
        Route::get("/v1/models", openai::models),
        Route::get("/v1/models/{id}", openai::model),
        Route::post("/v1/chat/completions", openai::chat),
        Route::post("/v1/completions", openai::completions),
        Route::post("/v1/responses", responses::create),
        Route::post("/api/chat", ollama::chat),
        Route::post("/api/generate", ollama::generate),
        Route::get("/api/tags", ollama::tags),
        Route::post("/api/show", ollama::show),
        Route::get("/api/ps", ollama::ps),
        Route::get("/api/version", ollama::version),
        Route::get("/health", native::health),
        Route::get("/v1/health", native::health),
        Route::get("/props", native::props),
        Route::get("/slots", native::slots),
        Route::get("/metrics", native::metrics),
        Route::post("/tokenize", native::tokenize),
        Route::post("/detokenize", native::detokenize),
        Route::post("/apply-template", native::apply_template),
        Route::post("/completion", native::completion),
        Route::post("/completions", native::completion),
        // As llama-server has them, whose clients may leave out `/v1`.
        Route::get("/models", openai::models),
        Route::post("/chat/completions", openai::chat),
        Route::post("/responses", responses::create),
    ]
}

/// Methods and paths of all routes.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    table().into_iter().map(|route| (route.method, route.path))
}

/// All routes, to serve or to mount elsewhere.
pub fn router(config: Config, model: Model, engine: Engine) -> Router {
    let app = Arc::new(App {
        config,
        model,
        engine,
        started: SystemTime::now(),
    });
    let all = table().into_iter();
    let routes = all.fold(Router::new(), |router, route| {
        // A model's name may have slashes in it.
        router.route(&route.path.replace("{id}", "{*id}"), route.handler)
    });
    routes
        .fallback(native::unknown)
        .method_not_allowed_fallback(native::another_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn_with_state(Arc::clone(&app), guard::check))
        .with_state(app)
}

/// Time that a request's headers may take to come.
const HEADERS: Duration = Duration::from_secs(30);

/// Serves until `stop` is done, then lets running answers come to their end.
///
/// # Errors
/// Of the socket.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    serve_with(listener, router, stop, HEADERS).await
}

/// As [`serve`]; connections whose headers take longer than `headers` are closed.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
    headers: Duration,
) -> std::io::Result<()> {
    let connections = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // The client is gone, or there are too many files: both pass.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let _ = stream.set_nodelay(true);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(headers);
        let service = TowerToHyperService::new(router.clone());
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        // Its errors are the client's.
        tokio::spawn(async move { connection.await.ok() });
    }
    drop(listener);
    connections.shutdown().await;
    Ok(())
}
