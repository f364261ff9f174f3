//! A bad line: what goes to a server and comes from it passes here, late, in drops, in part, or not at all. And a server at its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::s3::{Fault, SECRET};

/// Forwards requests over HTTP, one connection each, to a port of this machine.
pub struct Proxy {
    pub port: u16,
    pub requests: Arc<AtomicU64>,
}

impl Proxy {
    /// `faults` says what the request with this number meets.
    pub fn start(target: u16, faults: impl Fn(u64) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), requests: Arc::default() };
        let (faults, requests) = (Arc::new(faults), proxy.requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (faults, requests) = (faults.clone(), requests.clone());
                thread::spawn(move || {
                    let fault = faults(requests.fetch_add(1, Ordering::SeqCst));
                    // A line that breaks is what this is for.
                    let _ = forward(stream, target, fault);
                });
            }
        });
        proxy
    }
}

fn forward(mut client: TcpStream, target: u16, fault: Fault) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).to_lowercase();
        if line == b"\r\n" {
            head.extend_from_slice(b"Connection: close\r\n\r\n");
            break;
        }
        if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if !text.starts_with("connection:") {
            head.extend(line);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if let Fault::Status(status) = fault {
        let answer = format!("HTTP/1.1 {status} Answer\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return client.write_all(answer.as_bytes());
    }
    let mut server = TcpStream::connect(("127.0.0.1", target))?;
    server.write_all(&head)?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    match fault {
        Fault::Cut => client.write_all(&answer[..answer.len() / 2]),
        Fault::Drops(milliseconds) => answer.chunks((answer.len() / 10).max(1)).try_for_each(|drop| {
            thread::sleep(Duration::from_millis(milliseconds));
            client.write_all(drop)
        }),
        Fault::Slow(milliseconds) => {
            thread::sleep(Duration::from_millis(milliseconds));
            client.write_all(&answer)
        }
        _ => client.write_all(&answer),
    }
}

/// `s3s-fs`, a server of others' that keeps its objects as files: FOLDER/BUCKET/KEY.
pub struct S3Fs {
    pub port: u16,
    process: Child,
}

impl S3Fs {
    /// None where the program is absent; loud, and a failure with CLIPCAP_NO_SKIP.
    pub fn start(folder: &Path) -> Option<Self> {
        let Some(program) = program() else {
            assert!(std::env::var_os("CLIPCAP_NO_SKIP").is_none(), "s3s-fs is absent, and CLIPCAP_NO_SKIP makes that a failure");
            eprintln!("SKIPPED: s3s-fs is absent (scripts/setup.sh --s3, or CLIPCAP_S3S_FS=PROGRAM)");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--access-key", "test", "--secret-key", SECRET]);
        let process = command.arg(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { port, process };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "s3s-fs does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }
}

impl Drop for S3Fs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Named by the environment, or where `scripts/setup.sh --s3` puts it.
fn program() -> Option<PathBuf> {
    if let Some(told) = std::env::var_os("CLIPCAP_S3S_FS") {
        return Some(told.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(cache.join("clipcap-ci/tools/bin/s3s-fs")).filter(|program| program.is_file())
}
