//! Connections: one client for all, one store for each bucket, and errors in words of our own.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::path::Path as Key;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, Error, ObjectMeta, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;
use url::Url;

use super::keys::{Nameable, is_renamed};
use super::{PATIENCE, Version, is_web, tries, unreachable};

/// An object's place: where, and under which key.
#[derive(Clone)]
pub(super) struct Object {
    pub store: Arc<dyn ObjectStore>,
    pub paged: Paged,
    pub key: Key,
}

/// Where a listing can be asked for page by page.
type Paged = Option<Arc<dyn PaginatedListStore>>;

/// Requests run here while the threads that asked wait for them.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    // Which of the libraries for TLS is meant has to be said once.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("remote").enable_all().build()
});

pub(super) fn runtime() -> io::Result<&'static Runtime> {
    RUNTIME.as_ref().map_err(|error| io::Error::new(error.kind(), "cannot start the threads that talk to servers"))
}

/// Waits for a request.
pub(super) fn wait<T>(request: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
    runtime()?.block_on(request).map_err(|error| io_error(&error))
}

/// The connections are the same whatever the bucket.
#[derive(Debug)]
struct Shared;

impl HttpConnector for Shared {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // What differs is whether plain http is allowed.
        static CLIENTS: LazyLock<Mutex<HashMap<Option<String>, HttpClient>>> = LazyLock::new(Mutex::default);
        let kind = options.get_config_value(&ClientConfigKey::AllowHttp);
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = HttpClient::new(Nameable(ReqwestConnector::default().connect(options)?));
        clients.insert(kind, client.clone());
        Ok(client)
    }
}

/// Of keys such as `a//b`.
const UNNAMEABLE: &str =
    "its key has a part that is empty, `.` or `..`, or a control character, and such keys are not read: rename it";

type Stores = Mutex<HashMap<String, (Arc<dyn ObjectStore>, Paged)>>;

/// The place that a URL names.
pub(super) fn object(url: &Path) -> io::Result<Object> {
    static STORES: LazyLock<Stores> = LazyLock::new(Stores::default);
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidInput, message.to_string());
    let text = url.to_str().ok_or_else(|| invalid("a URL that is not UTF-8"))?;
    let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("not a URL"))?;
    if !is_web(url) && super::shown(url) != text {
        return Err(invalid("credentials in a URL are not taken: give them in the environment (docs/storage.md)"));
    }
    let (base, key) = match is_web(url) {
        true => web(text)?,
        false => {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            (format!("{scheme}://{bucket}"), Key::parse(key.trim_matches('/')).map_err(|_| invalid(UNNAMEABLE))?)
        }
    };
    if is_renamed(key.as_ref()) {
        return Err(invalid(UNNAMEABLE));
    }
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((store, paged)) = stores.get(&base).cloned() {
        return Ok(Object { store, paged, key });
    }
    // The runtime says which TLS is meant, before the client is made.
    runtime()?;
    let (store, paged) = open(scheme, &base).map_err(|error| io_error(&error))?;
    // A signed URL is used once.
    if !base.contains('?') {
        stores.insert(base, (store.clone(), paged.clone()));
    }
    Ok(Object { store, paged, key })
}

/// A web server's address with the query, which is part of every request, and the path.
fn web(text: &str) -> io::Result<(String, Key)> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidInput, "not a URL");
    let mut url = Url::parse(text).map_err(|_| invalid(()))?;
    let key = Key::from_url_path(url.path()).map_err(|_| invalid(()))?;
    url.set_path("");
    url.set_fragment(None);
    Ok((url.to_string(), key))
}

fn open(scheme: &str, base: &str) -> object_store::Result<(Arc<dyn ObjectStore>, Paged)> {
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(8), base: 2.0 },
        max_retries: tries() - 1,
        retry_timeout: PATIENCE,
    };
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10))
        .with_read_timeout(Duration::from_secs(30))
        .with_user_agent(http::HeaderValue::from_static(concat!("clipcap/", env!("CARGO_PKG_VERSION"))));
    Ok(match scheme {
        "s3" | "s3a" => {
            let plain = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
            let builder = AmazonS3Builder::from_env().with_url(base).with_client_options(client.with_allow_http(plain));
            // Removing many at once is not asked for again when the line is cut, and not every server knows it.
            let builder = builder.with_disable_bulk_delete(true);
            paged(builder.with_retry(retry).with_http_connector(Shared).build()?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(base).with_client_options(client);
            paged(builder.with_retry(retry).with_http_connector(Shared).build()?)
        }
        "az" | "azure" | "abfs" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(base).with_client_options(client);
            paged(builder.with_retry(retry).with_http_connector(Shared).build()?)
        }
        _ => {
            let client = client.with_allow_http(scheme == "http");
            let builder = HttpBuilder::new().with_url(base).with_client_options(client);
            (Arc::new(builder.with_retry(retry).with_http_connector(Shared).build()?), None)
        }
    })
}

impl Version {
    pub(super) fn of(object: &ObjectMeta) -> Self {
        // A weak tag is one of several contents that mean the same.
        let tag = object.e_tag.as_deref().filter(|tag| !tag.starts_with("W/") && !tag.trim_matches('"').is_empty());
        let hashed = |tag: &str| {
            let mut hasher = DefaultHasher::new();
            tag.hash(&mut hasher);
            hasher.finish()
        };
        let modified_ns = object.last_modified.timestamp_nanos_opt().unwrap_or_default();
        Self { bytes: object.size, modified_ns, tag: tag.map(hashed) }
    }
}

fn paged<S: ObjectStore + PaginatedListStore>(store: S) -> (Arc<dyn ObjectStore>, Paged) {
    let store = Arc::new(store);
    (store.clone(), Some(store))
}

/// An error by its kind. The libraries' own words may hold URLs with signatures.
pub(super) fn io_error(error: &Error) -> io::Error {
    let (kind, message) = match error {
        Error::NotFound { .. } => (io::ErrorKind::NotFound, "it is not there".to_string()),
        Error::AlreadyExists { .. } => (io::ErrorKind::AlreadyExists, "it is there already".to_string()),
        Error::PermissionDenied { .. } => {
            (io::ErrorKind::PermissionDenied, "the server refuses it with these credentials".to_string())
        }
        Error::Unauthenticated { .. } => (
            io::ErrorKind::PermissionDenied,
            "the server wants other credentials (a user and password in a URL are not sent)".to_string(),
        ),
        Error::Precondition { .. } => (io::ErrorKind::InvalidData, "it was changed while it was read".to_string()),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            (io::ErrorKind::Unsupported, "the server does not know how to do this".to_string())
        }
        Error::InvalidPath { .. } => (io::ErrorKind::InvalidInput, "a key that is none".to_string()),
        Error::UnknownConfigurationKey { key, .. } => (io::ErrorKind::InvalidInput, format!("the setting {key} is not known")),
        other => return unreachable(because(other)),
    };
    io::Error::new(kind, message)
}

/// The status that a server answered with. Of the libraries' words only the number is taken.
pub(super) fn answered(error: &Error) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok().filter(|status| (100..1000).contains(status))
}

/// What can be said of an error without its words: a status, or that there was no answer.
fn because(error: &Error) -> String {
    let text = error.to_string();
    match answered(error) {
        Some(status) => format!("the server answered {status} ({} tries)", tries()),
        None if text.contains("redential") || text.contains("169.254.") => {
            "no credentials are found in the environment (see docs/storage.md)".into()
        }
        None => format!("no answer from the server ({} tries)", tries()),
    }
}
