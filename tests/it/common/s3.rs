//! A server that speaks as much of S3 as is asked of it, in the test's own process, with the faults that a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a request meets.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    Status(u16),
    /// Half of the answer, and the connection is gone.
    Cut,
    /// Late by so many milliseconds.
    Slow(u64),
    /// A tenth of the answer after each so many milliseconds.
    Drops(u64),
    /// The object as a whole, whatever part was asked for.
    Whole,
}

/// From a request's number, its method and its key (`KEY@START` for a range) to what it meets.
pub type Faults = Arc<dyn Fn(u64, &str, &str) -> Fault + Send + Sync>;

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    /// Of uploads under way, by id: parts by number.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
}

/// The server, with one bucket that is called `bucket`.
pub struct S3 {
    pub port: u16,
    bucket: Arc<Mutex<Bucket>>,
    faults: Arc<Mutex<Faults>>,
    pub requests: Arc<AtomicU64>,
}

/// A secret that must be in no output.
pub const SECRET: &str = "NOBODYMAYSEETHIS";

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl S3 {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let none: Faults = Arc::new(|_, _, _| Fault::None);
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            bucket: Arc::default(),
            faults: Arc::new(Mutex::new(none)),
            requests: Arc::default(),
        };
        let (bucket, faults, requests) = (server.bucket.clone(), server.faults.clone(), server.requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (bucket, faults, requests) = (bucket.clone(), faults.clone(), requests.clone());
                thread::spawn(move || serve(stream, &bucket, &faults, &requests));
            }
        });
        server
    }

    pub fn fail(&self, faults: impl Fn(u64, &str, &str) -> Fault + Send + Sync + 'static) {
        *self.faults.lock().unwrap() = Arc::new(faults);
    }

    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        self.bucket.lock().unwrap().objects.insert(key.into(), bytes);
    }

    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.bucket.lock().unwrap().objects.get(key).cloned()
    }

    pub fn keys(&self) -> Vec<String> {
        self.bucket.lock().unwrap().objects.keys().cloned().collect()
    }

    /// Uploads that were begun and neither completed nor given up.
    pub fn uploads(&self) -> usize {
        self.bucket.lock().unwrap().uploads.len()
    }

    /// Puts a folder's files under a prefix.
    pub fn put_folder(&self, folder: &Path, prefix: &str) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let key = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() { self.put_folder(&path, &key) } else { self.put(&key, std::fs::read(&path).unwrap()) }
        }
    }

    /// The environment in which `s3://bucket` is this server.
    pub fn environment(&self, command: &mut Command) {
        environment(self.port, command);
    }
}

/// The environment in which `s3://` is the server at a port of this machine.
pub fn environment(port: u16, command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.to_lowercase().ends_with("_proxy")) {
        command.env_remove(name);
    }
    command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1");
    command.env("CLIPCAP_REMOTE_TRIES", "6");
}

fn serve(stream: TcpStream, bucket: &Mutex<Bucket>, faults: &Mutex<Faults>, requests: &AtomicU64) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(mut request) = request(&mut reader) {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let faults = faults.lock().unwrap().clone();
        // Of a range, where it begins is told behind the key.
        let from = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next());
        let place = from.map_or_else(|| request.key.clone(), |from| format!("{}@{from}", request.key));
        let fault = faults(number, &request.method, &place);
        let answer = match fault {
            Fault::Status(status) => answer(status, &[], b"<Error><Code>SlowDown</Code></Error>"),
            Fault::Whole => {
                request.headers.remove("range");
                handle(&request, &mut bucket.lock().unwrap())
            }
            _ => handle(&request, &mut bucket.lock().unwrap()),
        };
        if let Fault::Slow(milliseconds) = fault {
            thread::sleep(Duration::from_millis(milliseconds));
        }
        let end = if fault == Fault::Cut { answer.len() / 2 } else { answer.len() };
        let head_alone = request.method == "HEAD";
        let end =
            if head_alone { answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(end, |at| (at + 4).min(end)) } else { end };
        if stream.write_all(&answer[..end]).is_err() || fault == Fault::Cut {
            return;
        }
    }
}

fn request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(&value.replace('+', " ")))
    });
    let key =
        decoded(path).trim_start_matches('/').strip_prefix("bucket").unwrap_or("elsewhere").trim_start_matches('/').to_string();
    Some(Request { method, key, query: query.collect(), headers, body })
}

fn answer(status: u16, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Answer\r\n");
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    [(text + "\r\n").into_bytes(), body.to_vec()].concat()
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{:.32}\"", clipcap::files::ContentHash::of(bytes))
}

const TIME: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

fn handle(request: &Request, bucket: &mut Bucket) -> Vec<u8> {
    let query = |name: &str| request.query.get(name).map(String::as_str);
    match request.method.as_str() {
        "GET" if query("list-type").is_some() => list(request, bucket),
        "GET" | "HEAD" => read(request, bucket),
        "PUT" if query("partNumber").is_some() => {
            let Some(upload) = bucket.uploads.get_mut(query("uploadId").unwrap()) else { return answer(404, &[], b"") };
            upload.insert(query("partNumber").unwrap().parse().unwrap(), request.body.clone());
            answer(200, &[("ETag", tag(&request.body))], b"")
        }
        "PUT" => {
            if request.headers.get("if-none-match").is_some_and(|value| value == "*") && bucket.objects.contains_key(&request.key)
            {
                return answer(412, &[], b"<Error><Code>PreconditionFailed</Code></Error>");
            }
            bucket.objects.insert(request.key.clone(), request.body.clone());
            answer(200, &[("ETag", tag(&request.body))], b"")
        }
        "POST" if query("uploads").is_some() => {
            let id = format!("upload-{}-{}", bucket.uploads.len(), request.key.len());
            bucket.uploads.insert(id.clone(), BTreeMap::new());
            let key = &request.key;
            let text = format!(
                "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>{key}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            answer(200, &[], text.as_bytes())
        }
        "POST" if query("uploadId").is_some() => {
            let Some(parts) = bucket.uploads.remove(query("uploadId").unwrap()) else { return answer(404, &[], b"") };
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            let text = format!("<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>", tag(&whole));
            bucket.objects.insert(request.key.clone(), whole);
            answer(200, &[], text.as_bytes())
        }
        "POST" if query("delete").is_some() => {
            let text = String::from_utf8(request.body.clone()).unwrap();
            let keys = text.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap());
            let mut deleted = String::from("<DeleteResult>");
            for key in keys {
                bucket.objects.remove(&key.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"));
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            answer(200, &[], (deleted + "</DeleteResult>").as_bytes())
        }
        "DELETE" => {
            match query("uploadId") {
                Some(id) => drop(bucket.uploads.remove(id)),
                None => drop(bucket.objects.remove(&request.key)),
            }
            answer(204, &[], b"")
        }
        _ => answer(501, &[], b""),
    }
}

fn read(request: &Request, bucket: &Bucket) -> Vec<u8> {
    let Some(bytes) = bucket.objects.get(&request.key) else {
        return answer(404, &[], b"<Error><Code>NoSuchKey</Code></Error>");
    };
    let tag = tag(bytes);
    if request.headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
        return answer(412, &[], b"");
    }
    let mut headers = vec![("ETag", tag), ("Last-Modified", TIME.to_string()), ("Accept-Ranges", "bytes".into())];
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    if request.method == "HEAD" {
        headers.push(("Content-Length", bytes.len().to_string()));
        return answer(200, &headers, b"");
    }
    match range {
        Some((from, to)) => {
            let from: usize = from.parse().unwrap();
            let to = to.parse().unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
            if from >= bytes.len() {
                return answer(416, &[], b"");
            }
            headers.push(("Content-Range", format!("bytes {from}-{to}/{}", bytes.len())));
            answer(206, &headers, &bytes[from..=to])
        }
        None => answer(200, &headers, bytes),
    }
}

/// Few keys a page, so that several are needed.
const PAGE: usize = 7;

fn list(request: &Request, bucket: &Bucket) -> Vec<u8> {
    let query = |name: &str| request.query.get(name).cloned().unwrap_or_default();
    let (prefix, delimiter, after) = (query("prefix"), query("delimiter"), query("continuation-token"));
    let mut found: Vec<(String, Option<(usize, String)>)> = Vec::new();
    for (key, bytes) in bucket.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let rest = &key[prefix.len()..];
        let item = match rest.find('/').filter(|_| delimiter == "/") {
            Some(slash) => (format!("{prefix}{}", &rest[..=slash]), None),
            None => (key.clone(), Some((bytes.len(), tag(bytes)))),
        };
        if found.last() != Some(&item) && item.0 > after {
            found.push(item);
        }
    }
    let is_truncated = found.len() > PAGE;
    found.truncate(PAGE);
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut text = format!("<ListBucketResult><Name>bucket</Name><IsTruncated>{is_truncated}</IsTruncated>");
    if is_truncated {
        text += &format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&found.last().unwrap().0));
    }
    for (name, size) in &found {
        text += &match size {
            Some((size, tag)) => format!(
                "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>",
                escaped(name)
            ),
            None => format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(name)),
        };
    }
    answer(200, &[], (text + "</ListBucketResult>").as_bytes())
}
