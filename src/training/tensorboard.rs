//! TensorBoard event files: records of a protobuf message each, with checksums. The one crate that writes them is years old and brings an
//! image library along; the format is a page.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::files::if_there;

/// The messages of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto` that are needed (field numbers are TensorFlow's).
mod proto {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub struct Event {
        #[prost(double, tag = "1")]
        pub wall_time: f64,
        #[prost(int64, tag = "2")]
        pub step: i64,
        #[prost(string, optional, tag = "3")]
        pub file_version: Option<String>,
        #[prost(message, optional, tag = "5")]
        pub summary: Option<Summary>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Summary {
        #[prost(message, repeated, tag = "1")]
        pub value: Vec<Value>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Value {
        #[prost(string, tag = "1")]
        pub tag: String,
        #[prost(float, optional, tag = "2")]
        pub simple_value: Option<f32>,
        #[prost(message, optional, tag = "8")]
        pub tensor: Option<Tensor>,
        #[prost(message, optional, tag = "9")]
        pub metadata: Option<Metadata>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Metadata {
        #[prost(message, optional, tag = "1")]
        pub plugin_data: Option<PluginData>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct PluginData {
        #[prost(string, tag = "1")]
        pub plugin_name: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Tensor {
        #[prost(int32, tag = "1")]
        pub dtype: i32,
        #[prost(message, optional, tag = "2")]
        pub shape: Option<Shape>,
        #[prost(bytes = "vec", repeated, tag = "8")]
        pub string_val: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Shape {
        #[prost(message, repeated, tag = "2")]
        pub dim: Vec<Dim>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Dim {
        #[prost(int64, tag = "1")]
        pub size: i64,
    }
}

/// TensorFlow's code for strings.
const DT_STRING: i32 = 7;

/// TensorBoard opens any file with `tfevents` in its name; ours has neither time nor host in it.
const FILE_NAME: &str = "events.out.tfevents.0.clipcap";

/// Records longer than this are not ours.
const MAX_RECORD: u64 = 64 << 20;

/// The event file of a run, written to its end.
pub struct EventFile {
    path: PathBuf,
    file: File,
    pending: Vec<u8>,
}

impl EventFile {
    /// Opens the event file in `folder`, making it where there is none. Everything after `step`, and a record that was cut short by a
    /// crash, is cut off first.
    pub fn open(folder: &Path, step: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(FILE_NAME);
        let end = if_there(File::open(&path))?.map_or(Ok(0), |file| end_of(&mut io::BufReader::new(file), step))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        file.set_len(end)?;
        drop(file);
        let file = OpenOptions::new().append(true).open(&path)?;
        let mut events = Self { path, file, pending: vec![] };
        if end == 0 {
            events.push(0, Some("brain.Event:2".into()), None);
            events.flush()?;
        }
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers of one step, by tag such as `train/loss`. Written by [`flush`](Self::flush).
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
        let value = values
            .iter()
            .map(|&(tag, number)| proto::Value { tag: tag.into(), simple_value: Some(number as f32), ..Default::default() })
            .collect();
        self.push(step, None, Some(proto::Summary { value }));
    }

    /// A text of one step, shown as Markdown.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) {
        let tensor = proto::Tensor {
            dtype: DT_STRING,
            shape: Some(proto::Shape { dim: vec![proto::Dim { size: 1 }] }),
            string_val: vec![markdown.as_bytes().to_vec()],
        };
        let metadata = proto::Metadata { plugin_data: Some(proto::PluginData { plugin_name: "text".into() }) };
        let value = proto::Value { tag: tag.into(), simple_value: None, tensor: Some(tensor), metadata: Some(metadata) };
        self.push(step, None, Some(proto::Summary { value: vec![value] }));
    }

    fn push(&mut self, step: u64, file_version: Option<String>, summary: Option<proto::Summary>) {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let event = proto::Event { wall_time, step: step as i64, file_version, summary }.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        self.pending.extend(length);
        self.pending.extend(masked(&length).to_le_bytes());
        self.pending.extend(&event);
        self.pending.extend(masked(&event).to_le_bytes());
    }

    /// Hands what was recorded to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of checksummed data is no trivial number.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The length of the file up to its first record that is damaged or of a later step.
fn end_of(reader: &mut impl Read, step: u64) -> io::Result<u64> {
    let mut end = 0;
    while let Some((event, bytes)) = read_record(reader)? {
        if event.step > step as i64 {
            break;
        }
        end += bytes;
    }
    Ok(end)
}

/// The next event and its record's length; None at the end or where the file is damaged.
fn read_record(reader: &mut impl Read) -> io::Result<Option<(proto::Event, u64)>> {
    let Some(head) = read_some(reader, 12)? else { return Ok(None) };
    let (length, check) = head.split_at(8);
    let (length, check) = (u64::from_le_bytes(array(length)), u32::from_le_bytes(array(check)));
    if check != masked(&head[..8]) || length > MAX_RECORD {
        return Ok(None);
    }
    let Some(body) = read_some(reader, length as usize + 4)? else { return Ok(None) };
    let (event, check) = body.split_at(length as usize);
    if u32::from_le_bytes(array(check)) != masked(event) {
        return Ok(None);
    }
    Ok(proto::Event::decode(event).ok().map(|event| (event, 16 + length)))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("split at this length")
}

/// Exactly `length` bytes, or None where the file ends before.
fn read_some(reader: &mut impl Read, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    match reader.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(path: &Path) -> Vec<proto::Event> {
        let mut reader = io::BufReader::new(File::open(path).unwrap());
        std::iter::from_fn(|| read_record(&mut reader).unwrap()).map(|(event, _)| event).collect()
    }

    #[test]
    fn the_checksum_is_tensorflows() {
        // crc32c("123456789") is 0xe3069283; TFRecord's mask of it.
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_resumed_run_cuts_what_comes_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            file.scalars(step, &[("train/loss", 1.0 / step as f64), ("lr", 0.5)]);
        }
        file.text(5, "dev/captions", "一个人");
        file.flush().unwrap();
        let path = file.path().to_path_buf();
        drop(file);
        let all = events(&path);
        assert_eq!(all.len(), 7);
        assert_eq!(all[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(all[2].summary.as_ref().unwrap().value[0].simple_value, Some(0.5));
        // Half a record at the end, as a crash leaves it.
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(&bytes.clone()[..30]);
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let mut file = EventFile::open(folder.path(), 3).unwrap();
        file.scalars(4, &[("train/loss", 9.0)]);
        file.flush().unwrap();
        assert_eq!(events(&path).iter().map(|e| e.step).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(events(&path)[4].summary.as_ref().unwrap().value[0].simple_value, Some(9.0));
    }

    #[test]
    fn a_file_that_is_not_ours_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), b"\xff\xff\xff\xff\xff\xff\xff\xffnonsense").unwrap();
        let file = EventFile::open(folder.path(), 10).unwrap();
        assert_eq!(events(file.path()).len(), 1);
    }
}
