//! The hub's interface: what a model consists of, and requests that follow its redirects.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;

/// Where Hugging Face's hub is, unless `HF_ENDPOINT` says another place.
const ENDPOINT: &str = "https://huggingface.co";

const MOST_REDIRECTS: usize = 8;

/// Tries of a request that fails in a way that may pass.
pub const TRIES: u32 = 6;

/// A hub, and how it is talked to.
#[derive(Debug, Clone)]
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing is asked.
    pub is_offline: bool,
    /// Before the second try; twice as long before each further one.
    pub pause: Duration,
    agent: ureq::Agent,
}

impl Default for Hub {
    /// As the environment says: HF_ENDPOINT, HF_TOKEN (or the token's file), HF_HUB_OFFLINE, HTTPS_PROXY,
    /// SSL_CERT_FILE, and CLIPCAP_RETRY_MS for the first pause.
    fn default() -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_string();
        let is_set =
            |name: &str| variable(name).is_some_and(|value| !matches!(value.to_lowercase().as_str(), "0" | "false" | "no"));
        let is_offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
        let pause = variable("CLIPCAP_RETRY_MS").and_then(|text| text.parse().ok()).unwrap_or(1000);
        Self { endpoint, token: token(), is_offline, pause: Duration::from_millis(pause), agent: agent() }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// `HF_TOKEN`, or what `hf auth login` has left.
fn token() -> Option<String> {
    let file = || {
        let path = variable("HF_TOKEN_PATH").map_or_else(|| crate::models::import::hub_home().join("token"), Into::into);
        std::fs::read_to_string(path).ok()
    };
    let token = variable("HF_TOKEN").or_else(file)?.trim().to_string();
    (!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())).then_some(token)
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // Redirects are followed here: what their headers say is needed, and other hosts get no token.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("clipcap/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // What came until then is kept, and the rest asked for again.
        .timeout_recv_body(Some(Duration::from_secs(300)));
    let tls = ureq::tls::TlsConfig::builder().root_certs(root_certificates()).build();
    config.tls_config(tls).build().into()
}

/// A company's own certificates where `SSL_CERT_FILE` (or requests' variable) names them, else Mozilla's.
fn root_certificates() -> ureq::tls::RootCerts {
    use ureq::tls::{PemItem, RootCerts, parse_pem};
    let file = variable("SSL_CERT_FILE").or_else(|| variable("REQUESTS_CA_BUNDLE")).and_then(|path| std::fs::read(path).ok());
    let certificates: Vec<_> = file
        .iter()
        .flat_map(|pem| parse_pem(pem))
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&certificates) }
}

/// A file of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteFile {
    pub path: String,
    pub size: Option<u64>,
    /// Of a large file (LFS), in hex.
    pub sha256: Option<String>,
    /// Git's id of a small file, in hex: SHA-1 of `blob LENGTH\0` and the content.
    pub git_id: Option<String>,
}

/// A repository at a commit.
#[derive(Debug)]
pub struct Remote {
    pub name: String,
    pub commit: String,
    pub license: Option<String>,
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Remote {
    /// `license  mit`, or where to read it.
    pub fn license_text(&self, hub: &Hub) -> String {
        let page = format!("{}/{}", hub.endpoint, self.name);
        match &self.license {
            Some(license) => format!("license  {license} ({page})"),
            None => format!("license  not stated: read {page}"),
        }
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A path inside a repository that stays inside a folder.
fn is_safe(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

impl Hub {
    /// What a repository holds.
    ///
    /// # Errors
    /// It is not there, or not for everybody, or the hub cannot be reached; the message says what to do.
    pub fn model(&self, name: &str, revision: &str) -> Result<Remote> {
        let revision = percent_encoding::utf8_percent_encode(revision, percent_encoding::NON_ALPHANUMERIC);
        let url = format!("{}/api/models/{name}/revision/{revision}?blobs=true", self.endpoint);
        let mut response = self.get(&url, None)?;
        self.check(name, &response)?;
        let text =
            response.body_mut().with_config().limit(64 << 20).read_to_string().with_context(|| format!("cannot read {url}"))?;
        let info: Info =
            serde_json::from_str(&text).with_context(|| format!("{url}: not the hub's answer: is HF_ENDPOINT right?"))?;
        let commit = info.sha.filter(|sha| is_hex(sha, 40)).with_context(|| format!("{url}: no commit in the answer"))?;
        let license = info.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned);
        let files = info.siblings.into_iter().filter(|file| is_safe(&file.rfilename)).map(|file| {
            let lfs_size = file.lfs.as_ref().and_then(|lfs| lfs.size);
            let is_lfs = file.lfs.is_some();
            RemoteFile {
                path: file.rfilename,
                size: lfs_size.or(file.size),
                sha256: file.lfs.and_then(|lfs| lfs.sha256).filter(|hash| is_hex(hash, 64)),
                // Of a large file it is the pointer's.
                git_id: file.blob_id.filter(|id| !is_lfs && is_hex(id, 40)),
            }
        });
        Ok(Remote { name: name.into(), commit, license, files: files.collect() })
    }

    /// A file from byte `from` on, and its hash where only the answer tells it.
    pub fn file(&self, name: &str, commit: &str, path: &str, from: u64) -> Result<Response<Body>> {
        let path: Vec<String> = path
            .split('/')
            .map(|part| percent_encoding::utf8_percent_encode(part, percent_encoding::NON_ALPHANUMERIC).to_string())
            .collect();
        let url = format!("{}/{name}/resolve/{commit}/{}", self.endpoint, path.join("/"));
        self.get_once(&url, Some(format!("bytes={from}-")).filter(|_| from > 0).as_deref())
    }

    /// Says what an answer other than the wanted one means.
    pub fn check(&self, name: &str, response: &Response<Body>) -> Result<()> {
        let page = format!("{}/{name}", self.endpoint);
        match response.status().as_u16() {
            200..=299 => Ok(()),
            401 | 403 if self.token.is_some() => {
                bail!("{name}: this token may not read it: accept its terms at {page}, or give another HF_TOKEN")
            }
            401 | 403 => bail!(
                "{name}: it does not exist, or is not for everybody: check the name; if it exists, accept its terms at {page} and set HF_TOKEN"
            ),
            404 => bail!("{name}: no such model (or revision) at {}: check the name at {page}", self.endpoint),
            status => bail!("{page}: the hub answers {status}"),
        }
    }

    /// A request that is tried again where the fault may pass.
    fn get(&self, url: &str, range: Option<String>) -> Result<Response<Body>> {
        let mut pause = self.pause;
        for attempt in 1..=TRIES {
            match self.get_once(url, range.as_deref()) {
                Ok(response) if attempt == TRIES || !may_pass(response.status().as_u16()) => return Ok(response),
                Err(error) if attempt == TRIES => return Err(self.unreachable(error)),
                _ => std::thread::sleep(pause),
            }
            pause *= 2;
        }
        bail!("{url}: no answer")
    }

    /// An error of the network, and what may be wrong.
    pub fn unreachable(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!(
            "cannot reach {}: is there a network? (HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror, SSL_CERT_FILE a company's certificates)",
            self.endpoint
        ))
    }

    /// A request, followed to where it leads. Only the hub itself gets the token.
    fn get_once(&self, url: &str, range: Option<&str>) -> Result<Response<Body>> {
        let mut url = url.to_string();
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token.as_ref().filter(|_| host(&url) == host(&self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            let response = request.call().map_err(|error| anyhow!("{url}: {error}"))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            url = absolute(&url, location.with_context(|| format!("{url}: a redirect to nowhere"))?);
        }
        bail!("{url}: more than {MOST_REDIRECTS} redirects")
    }
}

/// Whether an answer of this status may be another one later.
pub fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// `https://host:port`
fn host(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Where a redirect leads, seen from where it was.
fn absolute(from: &str, location: &str) -> String {
    if location.contains("://") { location.into() } else { format!("{}/{}", host(from), location.trim_start_matches('/')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_redirects() {
        assert_eq!(host("https://a.b:1/c?d"), "https://a.b:1");
        assert_eq!(host("https://a.b"), "https://a.b");
        assert_eq!(absolute("https://a.b/c", "/d/e"), "https://a.b/d/e");
        assert_eq!(absolute("https://a.b/c", "https://x/y"), "https://x/y");
        assert!(is_safe("a/b.json"));
        for path in ["../a", "/a", "a//b", "a/..", "", "a\\b", "a\nb"] {
            assert!(!is_safe(path), "{path:?}");
        }
        assert!(may_pass(503) && may_pass(429) && !may_pass(404));
    }
}
