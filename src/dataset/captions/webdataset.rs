//! Captions in webdataset's tars: members that share a key are one sample, a picture with its `.txt`, its `.json` or both.

use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::batch::{Bad, Batch, Reason};
use super::columns::CAPTION_NAMES;
use super::elements::MAX_ELEMENT_BYTES;
use super::json::{self, ObjectLayout};
use super::python;
use crate::dataset::listing::{image_path, last_part};
use crate::dataset::naming::{image_id, without_extension};
use crate::dataset::tar::{Member, MemberKind, Tar, TarError, inner_path};
use crate::files::ContentHash;

/// Samples of a batch, and bytes of their captions.
const BATCH_SAMPLES: u64 = 4096;
const BATCH_BYTES: usize = 8 << 20;

/// What a tar held.
pub struct WebDataset {
    pub batches: Vec<Batch>,
    /// Of the names and contents that captions were taken from. Pictures have hashes of their own.
    pub sha256: ContentHash,
}

/// Reads a tar's captions; pictures are passed over. `name` is the tar's in image_paths.
///
/// # Errors
/// The file cannot be opened. One that is damaged on the way has a bad line for what is missing.
pub fn read(path: &Path, layout: &ObjectLayout) -> std::io::Result<WebDataset> {
    let name = last_part(path).map(|name| image_path(&name)).unwrap_or_default();
    let mut reader = Reader { name, layout, hasher: Sha256::new(), batches: Vec::new(), batch: Batch::default(), bytes: 0 };
    let mut tar = Tar::open(path)?;
    let mut sample = Sample::default();
    loop {
        match tar.next_member() {
            Ok(Some(member)) => {
                if let Err(error) = reader.member(&mut tar, &member, &mut sample) {
                    reader.end(sample, Some(&error));
                    break;
                }
            }
            Ok(None) => {
                reader.end(sample, None);
                break;
            }
            Err(TarError::Io(error)) => return Err(error),
            Err(error) => {
                reader.end(sample, Some(&error));
                break;
            }
        }
    }
    Ok(WebDataset { batches: reader.batches, sha256: reader.hasher.into() })
}

/// Members that share a key.
#[derive(Default)]
struct Sample {
    key: Vec<u8>,
    /// The first picture's path in the tar.
    picture: Option<Vec<u8>>,
    text: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
    /// A member that is too large to be a caption.
    too_long: bool,
}

struct Reader<'a> {
    name: String,
    layout: &'a ObjectLayout<'a>,
    hasher: Sha256,
    batches: Vec<Batch>,
    batch: Batch,
    bytes: usize,
}

impl Reader<'_> {
    fn member(&mut self, tar: &mut Tar, member: &Member, sample: &mut Sample) -> Result<(), TarError> {
        let Some(inner) = inner_path(&member.name).filter(|_| member.kind == MemberKind::File) else { return Ok(()) };
        let (key, extension) = parts(&inner);
        if key != sample.key {
            let next = Sample { key: key.to_vec(), ..Sample::default() };
            self.sample(std::mem::replace(sample, next));
        }
        let extension = extension.to_ascii_lowercase();
        let content = match &extension[..] {
            b"txt" => &mut sample.text,
            b"json" => &mut sample.json,
            _ => {
                if sample.picture.is_none() && is_called_an_image(&inner) {
                    sample.picture = Some(inner);
                }
                return Ok(());
            }
        };
        if member.bytes > MAX_ELEMENT_BYTES as u64 {
            sample.too_long = true;
            return Ok(());
        }
        let read = tar.read(u64::MAX)?;
        self.hasher.update((inner.len() as u64).to_le_bytes());
        self.hasher.update(&inner);
        self.hasher.update(&read);
        content.get_or_insert(read);
        Ok(())
    }

    fn sample(&mut self, sample: Sample) {
        // Folders' own names, and what is before the first member.
        if sample.picture.is_none() && sample.text.is_none() && sample.json.is_none() && !sample.too_long {
            return;
        }
        self.batch.lines += 1;
        let line = self.batch.lines;
        let pushed = match self.object(&sample) {
            Ok(Some(object)) => json::push_value(&mut self.batch, line, &Value::Object(object), self.layout),
            Ok(None) => {
                self.batch.blank += 1;
                Ok(())
            }
            Err(bad) => Err(bad),
        };
        if let Err(bad) = pushed {
            self.batch.bad.push((line, bad));
        }
        self.bytes += [&sample.text, &sample.json].iter().filter_map(|content| content.as_ref()).map(Vec::len).sum::<usize>();
        if self.batch.lines == BATCH_SAMPLES || self.bytes >= BATCH_BYTES {
            self.bytes = 0;
            self.batches.push(std::mem::take(&mut self.batch));
        }
    }

    /// The sample as an object of a JSON line; None where it has no caption.
    fn object(&self, sample: &Sample) -> Result<Option<Map<String, Value>>, Bad> {
        if sample.too_long {
            return Err(Bad::new(Reason::LineTooLong, format!("a .txt or .json of more than {MAX_ELEMENT_BYTES} bytes")));
        }
        let said = match &sample.json {
            Some(bytes) => object_of(bytes)?,
            None => Map::new(),
        };
        let inner = sample.picture.as_ref().unwrap_or(&sample.key);
        let file = format!("{}/{}", self.name, image_path(inner));
        let mut object = Map::new();
        let own = said.get("image_id").and_then(python::text);
        object.insert("image_id".into(), own.unwrap_or_else(|| image_id(&file).into_owned()).into());
        object.insert("file_name".into(), file.into());
        let named = &self.layout.columns.captions;
        let mut take = |name: &str| match said.get(name).filter(|value| !value.is_null()) {
            Some(value) => object.insert(name.into(), value.clone()).is_none(),
            None => false,
        };
        if !named.is_empty() {
            for name in named {
                take(name);
            }
        } else if take("captions") {
            take("captions_raw");
        } else if let Some(text) = &sample.text {
            let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
            let text = std::str::from_utf8(text).map_err(|_| Bad::new(Reason::InvalidUtf8, "its .txt is not UTF-8"))?;
            object.insert("caption".into(), Value::String(text.trim().into()));
        } else if !CAPTION_NAMES.iter().any(|name| take(name)) {
            return Ok(None);
        }
        for name in ["split", "translation", "sha256"].into_iter().chain(self.layout.columns.split.as_deref()) {
            if let Some(value) = said.get(name) {
                object.insert(name.into(), value.clone());
            }
        }
        Ok(Some(object))
    }

    /// The last sample, and what is told where the tar could not be read to its end.
    fn end(&mut self, sample: Sample, error: Option<&TarError>) {
        self.sample(sample);
        if let Some(error) = error {
            self.batch.lines += 1;
            let bad = Bad::new(Reason::BadRecord, error.consequence());
            self.batch.bad.push((self.batch.lines, bad));
        }
        self.batches.push(std::mem::take(&mut self.batch));
    }
}

fn object_of(bytes: &[u8]) -> Result<Map<String, Value>, Bad> {
    match python::value(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Bad::new(Reason::BadJson, "its .json is not an object")),
        Err(error) => Err(Bad::new(Reason::BadJson, format!("its .json: {error}"))),
    }
}

/// Key and extension as webdataset has them: the first dot of the last part is between them.
fn parts(inner: &[u8]) -> (&[u8], &[u8]) {
    let name = memchr::memrchr(b'/', inner).map_or(0, |slash| slash + 1);
    match memchr::memchr(b'.', &inner[name..]) {
        Some(dot) => (&inner[..name + dot], &inner[name + dot + 1..]),
        None => (inner, &[]),
    }
}

fn is_called_an_image(inner: &[u8]) -> bool {
    let name = String::from_utf8_lossy(inner);
    without_extension(&name).len() < name.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::captions::{Captions, ReadOptions, read_captions};
    use crate::dataset::tar::TarWriter;

    fn read(members: &[(&str, &str)], cut: usize, columns: &str) -> Captions {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set 0.tar");
        let mut writer = TarWriter::new(Vec::new());
        for (name, content) in members {
            writer.add(name.as_bytes(), content.as_bytes()).unwrap();
        }
        let mut bytes = writer.finish().unwrap();
        bytes.truncate(bytes.len() - cut);
        std::fs::write(&path, bytes).unwrap();
        let columns = if columns.is_empty() { Default::default() } else { columns.parse().unwrap() };
        read_captions(&[path], &ReadOptions { columns, ..ReadOptions::default() }).unwrap()
    }

    /// `id file caption raw split` of each row.
    fn rows(captions: &Captions) -> Vec<String> {
        let batches = captions.batches.iter().map(|(_, batch)| batch);
        let row = |batch: &Batch, row: &super::super::Row| {
            let file = row.file.map(|file| batch.get(file)).unwrap_or("-");
            [batch.get(row.image), file, batch.get(row.caption), batch.get(row.raw), batch.get(row.split)].join("|")
        };
        batches.flat_map(|batch| batch.rows.iter().map(|one| row(batch, one)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn members_of_a_key_are_a_sample() {
        let ours = r#"{"image_id": "a/1", "image_path": "a/1.png", "captions": ["一只 狗", "黑狗"], "captions_raw": ["一只  狗", "黑狗"], "split": "test"}"#;
        let captions = read(
            &[
                ("0.png", "picture"),
                ("0.txt", "first alone"),
                ("0.json", ours),
                ("./1.txt", "\u{feff}两只猫\n"),
                ("./1.JPG", "picture"),
                ("2.left.jpg", "picture"),
                ("2.right.jpg", "picture"),
                ("2.json", r#"{"key": "2", "caption": "三个人", "image_path": "elsewhere.jpg"}"#),
                ("3.png", "no caption"),
                ("4.png", "p"),
                ("4.json", "{"),
                ("5.txt", "no picture"),
            ],
            0,
            "",
        );
        assert_eq!(
            rows(&captions),
            [
                "a/1|set 0.tar/0.png|一只狗|一只  狗|test",
                "a/1|set 0.tar/0.png|黑狗|黑狗|test",
                "set 0.tar/1|set 0.tar/1.JPG|两只猫|两只猫|",
                "set 0.tar/2.left|set 0.tar/2.left.jpg|三个人|三个人|",
                "set 0.tar/5|set 0.tar/5|no picture|no picture|",
            ]
        );
        let file = &captions.files[0];
        assert_eq!((file.lines, file.blank, file.bad, file.captions), (6, 1, 1, 5));
        assert_eq!((captions.bad[0].line, captions.bad[0].bad.reason), (5, Reason::BadJson));
    }

    #[test]
    fn columns_name_fields_and_a_cut_tar_says_what_is_missing() {
        let named = r#"{"zh": "狗", "en": "a dog", "part": "dev"}"#;
        let captions = read(&[("0.png", "p"), ("0.json", named)], 0, "image=x,caption=zh,split=part");
        assert_eq!(rows(&captions), ["set 0.tar/0|set 0.tar/0.png|狗|狗|dev"]);
        let captions = read(&[("0.png", "p"), ("0.txt", "狗"), ("1.png", "p"), ("1.txt", "猫")], 1536, "");
        assert_eq!(rows(&captions).len(), 1);
        assert!(captions.bad[0].bad.message.contains("what follows in this tar is missing"), "{:?}", captions.bad);
    }
}
