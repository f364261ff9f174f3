//! `model get` against a server with the hub's layout: redirects, ranges, cut connections, wrong bytes, tokens, and no network at all.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::{clipcap, run};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What is wrong with a hub.
#[derive(Default)]
struct Faults {
    /// Answers of 503 before the first right one, per path.
    busy: u32,
    /// Large files end after so many bytes of an answer.
    cut_after: Option<usize>,
    /// Large files have another byte in them: so many times.
    wrong: u32,
    /// Ranges are not understood.
    no_ranges: bool,
    /// Only who has this token may read.
    token: Option<&'static str>,
    /// Hashes are not told.
    no_hashes: bool,
}

/// A hub in a thread; it ends with the process.
struct Hub {
    address: String,
    /// `PATH RANGE TOKEN` of every request.
    log: Arc<Mutex<Vec<String>>>,
}

struct Repository {
    files: HashMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    elsewhere: String,
    log: Arc<Mutex<Vec<String>>>,
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Hub {
    fn new(files: HashMap<String, Vec<u8>>, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        // Large files are elsewhere.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = format!("http://{}", other.local_addr().unwrap());
        let repository = Arc::new(Repository { files, faults: faults.into(), elsewhere, log: log.clone() });
        for listener in [listener, other] {
            let repository = repository.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let repository = repository.clone();
                    thread::spawn(move || repository.answer(stream));
                }
            });
        }
        Self { address, log }
    }

    fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// `clipcap model get ARGS` with this hub and a cache of its own.
    fn get(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = clipcap();
        command.args(["model", "get"]).args(args).env("HF_ENDPOINT", &self.address).env("HF_HOME", folder.join("hf"));
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "HTTPS_PROXY",
            "HTTP_PROXY",
            "ALL_PROXY",
            "https_proxy",
            "http_proxy",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command.env("CLIPCAP_RETRY_MS", "1");
        command
    }
}

impl Repository {
    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_string();
        let (mut range, mut token) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    range = value.strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse::<usize>().ok())
                }
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        self.log.lock().unwrap().push(format!("{path} {range:?} {token:?}"));
        let _ = self.send(&mut stream, &path, range, token);
    }

    fn send(&self, stream: &mut TcpStream, path: &str, range: Option<usize>, token: Option<String>) -> std::io::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        let mut plain = |status: &str, headers: &str, body: &[u8]| {
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}connection: close\r\n\r\n", body.len())?;
            stream.write_all(body)
        };
        if faults.busy > 0 {
            faults.busy -= 1;
            return plain("503 Service Unavailable", "", b"");
        }
        if let Some(path) = path.strip_prefix("/cdn/") {
            assert!(token.is_none(), "another place has learned the token");
            let mut content = self.files[path].clone();
            if faults.wrong > 0 {
                faults.wrong -= 1;
                content[10] ^= 1;
            }
            let from = range.filter(|_| !faults.no_ranges).unwrap_or(0);
            if from >= content.len() {
                return plain("416 Range Not Satisfiable", "", b"");
            }
            let rest = &content[from..];
            let (status, header) = match from {
                0 => ("200 OK", String::new()),
                _ => ("206 Partial Content", format!("content-range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len())),
            };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{header}connection: close\r\n\r\n", rest.len())?;
            return stream.write_all(&rest[..faults.cut_after.unwrap_or(rest.len()).min(rest.len())]);
        }
        if faults.token.is_some() && faults.token != token.as_deref() {
            return plain("401 Unauthorized", "", b"");
        }
        if path.starts_with("/api/models/org/name/revision/main") {
            let siblings: Vec<Value> =
                self.files.iter().map(|(name, content)| self.sibling(name, content, faults.no_hashes)).collect();
            let info = json!({"id": "org/name", "sha": COMMIT, "tags": ["license:mit"], "siblings": siblings});
            return plain("200 OK", "content-type: application/json\r\n", info.to_string().as_bytes());
        }
        let name = path
            .strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))
            .map(|name| name.replace("%2E", ".").replace("%5F", "_").replace("%2D", "-"));
        match name.and_then(|name| Some((self.files.get(&name)?, name))) {
            Some((_, name)) if is_large(&name) => {
                plain("302 Found", &format!("location: {}/cdn/{name}\r\n", self.elsewhere), b"")
            }
            Some((content, _)) => plain("200 OK", "", content),
            None => plain("404 Not Found", "", b""),
        }
    }

    fn sibling(&self, name: &str, content: &[u8], no_hashes: bool) -> Value {
        if no_hashes {
            return json!({"rfilename": name});
        }
        let mut sibling = json!({"rfilename": name, "size": content.len()});
        if is_large(name) {
            sibling["lfs"] = json!({"sha256": hex(&Sha256::digest(content)), "size": content.len()});
        }
        sibling
    }
}

/// A repository with a large file and what goes with it.
fn files() -> HashMap<String, Vec<u8>> {
    let large: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let named = |name: &str, content: &[u8]| (name.to_string(), content.to_vec());
    HashMap::from([
        named("config.json", b"{}"),
        named("special_tokens_map.json", b"{\"a\": 1}"),
        named("model.safetensors", &large),
        named("tf_model.h5", b"not wanted"),
    ])
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_model_comes_into_the_cache_once_and_is_found_there_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(files(), Faults { busy: 2, ..Faults::default() });
    let output = run(&mut hub.get(folder.path(), &["org/name"]), 0);
    let said = told(&output);
    assert!(said.contains("license  mit") && said.contains(COMMIT) && said.contains("clipcap model init"), "{said}");
    let root = folder.path().join("hf/hub/models--org--name");
    let snapshot = root.join("snapshots").join(COMMIT);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    assert!(!snapshot.join("tf_model.h5").exists());
    // As Hugging Face's own tools lay it out: links to contents that are called by their hashes.
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(hex(&Sha256::digest(&files()["model.safetensors"]))));
    // Again: nothing of it comes over the network.
    let before = hub.requests().len();
    let again = run(&mut hub.get(folder.path(), &["org/name", "--json"]), 0);
    let json: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(json["models"][0]["fetched_bytes"], 0);
    assert_eq!(hub.requests().len(), before + 1);
    // Without a network it is found, and its name is a folder to whoever takes one.
    let offline =
        run(hub.get(folder.path(), &["org/name"]).env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:1"), 0);
    assert!(told(&offline).contains(&snapshot.display().to_string()));
    let init = |name: &str| {
        let mut command = clipcap();
        command.args(["model", "init", "--clip", name, "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--out"]);
        command.arg(folder.path().join("b")).env("HF_HOME", folder.path().join("hf")).env_remove("HF_HUB_CACHE");
        told(&run(&mut command, 1))
    };
    // The configuration there is empty: it was read.
    let said = init("org/name");
    assert!(said.contains(COMMIT) && !said.contains("model get"), "{said}");
    assert!(init("org/other").contains("`clipcap model get org/other`"));
}

#[test]
fn what_is_cut_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for no_ranges in [false, true] {
        let cut_after = if no_ranges { None } else { Some(70_000) };
        let hub = Hub::new(files(), Faults { cut_after, no_ranges, ..Faults::default() });
        let out = folder.path().join(format!("out-{no_ranges}"));
        fs::create_dir_all(&out).unwrap();
        // A run before this one was stopped.
        fs::write(out.join("model.safetensors.incomplete"), &files()["model.safetensors"][..1000]).unwrap();
        run(hub.get(folder.path(), &["org/name", "--out"]).arg(&out), 0);
        assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
        assert!(!out.join("model.safetensors.incomplete").exists());
        let ranges: Vec<String> = hub.requests().into_iter().filter(|line| line.starts_with("/cdn/")).collect();
        let expected = if no_ranges { vec![1000] } else { vec![1000, 71_000, 141_000, 211_000, 281_000] };
        let asked: Vec<String> = expected.iter().map(|from| format!("/cdn/model.safetensors Some({from}) None")).collect();
        assert_eq!(ranges, asked);
    }
}

#[test]
fn wrong_bytes_are_never_kept() {
    let folder = tempfile::tempdir().unwrap();
    // Once may be an accident; and what an earlier run left may be another file's.
    let hub = Hub::new(files(), Faults { wrong: 1, ..Faults::default() });
    let out = folder.path().join("once");
    run(hub.get(folder.path(), &["org/name", "--out"]).arg(&out), 0);
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    let hub = Hub::new(files(), Faults { wrong: 9, ..Faults::default() });
    let out = folder.path().join("always");
    let said = told(&run(hub.get(folder.path(), &["org/name", "--out"]).arg(&out), 1));
    assert!(said.contains("model.safetensors is not what the hub says it is"), "{said}");
    assert!(!out.join("model.safetensors").exists() && !out.join("model.safetensors.incomplete").exists());
    // A file that was damaged on the disk is fetched again.
    let hub = Hub::new(files(), Faults::default());
    let out = folder.path().join("once");
    let mut damaged = files()["model.safetensors"].clone();
    damaged[7] ^= 1;
    fs::write(out.join("model.safetensors"), damaged).unwrap();
    run(hub.get(folder.path(), &["org/name", "--out"]).arg(&out), 0);
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
}

#[test]
fn who_may_not_read_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(files(), Faults { token: Some("hf_secret"), ..Faults::default() });
    let said = told(&run(&mut hub.get(folder.path(), &["org/name"]), 1));
    assert!(said.contains("HF_TOKEN"), "{said}");
    run(hub.get(folder.path(), &["org/name"]).env("HF_TOKEN", "hf_secret"), 0);
    let said = told(&run(hub.get(folder.path(), &["org/gone"]).env("HF_TOKEN", "hf_secret"), 1));
    assert!(said.contains("no such model") && !said.contains("hf_secret"), "{said}");
    // No network; a mirror that tells no hashes; a name that is none.
    let said = told(&run(hub.get(folder.path(), &["org/name"]).env("HF_ENDPOINT", "http://127.0.0.1:1"), 1));
    assert!(said.contains("cannot reach http://127.0.0.1:1") && said.contains("HTTPS_PROXY"), "{said}");
    let mirror = Hub::new(files(), Faults { no_hashes: true, ..Faults::default() });
    let fresh = tempfile::tempdir().unwrap();
    run(&mut mirror.get(fresh.path(), &["org/name"]), 0);
    let said = told(&run(&mut hub.get(folder.path(), &["../x"]), 2));
    assert!(said.contains("ORG/NAME"), "{said}");
    let said = told(&run(&mut hub.get(folder.path(), &["--list"]), 0));
    assert!(said.contains("clip-b32") && said.contains("uer/gpt2-chinese-cluecorpussmall"), "{said}");
}

#[test]
fn a_proxy_is_asked_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let asked = thread::spawn(move || {
        // It may come in pieces.
        let mut line = String::new();
        BufReader::new(listener.accept().unwrap().0).read_line(&mut line).unwrap();
        line
    });
    let hub = Hub::new(files(), Faults::default());
    let mut command = hub.get(folder.path(), &["org/name"]);
    let mut child = command.env("HF_ENDPOINT", "https://hub.invalid").env("HTTPS_PROXY", proxy).spawn().unwrap();
    let begin = asked.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(begin.starts_with("CONNECT hub.invalid:443"), "{begin}");
}
