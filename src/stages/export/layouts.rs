//! The layouts that are folders: webdataset, imagefolder, Parquet and kohya's.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BinaryArray, ListBuilder, StringArray, StringBuilder, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde_json::json;

use super::{ExportSettings, Item, Target};
use crate::dataset::listing::relative_path;
use crate::dataset::tar::TarWriter;
use crate::files::{AtomicFile, write_atomic};
use crate::table::ParquetSink;

/// Bytes of pictures that are encoded at once.
const BATCH_BYTES: usize = 32 << 20;

/// A folder under construction.
pub(super) struct Layout {
    target: Target,
    folder: PathBuf,
    shard_images: u64,
    files: Vec<PathBuf>,
    /// By split; "" where there is none.
    splits: BTreeMap<String, Split>,
}

/// What is open of a split.
#[derive(Default)]
struct Split {
    /// Shards begun, and pictures in the present one.
    shards: u64,
    images: u64,
    tar: Option<TarWriter<AtomicFile>>,
    table: Option<Rows>,
    metadata: Option<AtomicFile>,
}

impl Layout {
    pub fn create(settings: &ExportSettings, folder: &Path) -> Result<Self> {
        Ok(Self {
            target: settings.target,
            folder: folder.into(),
            shard_images: settings.shard_images,
            files: Vec::new(),
            splits: BTreeMap::new(),
        })
    }

    pub fn add(&mut self, item: &Item, bytes: Vec<u8>) -> Result<()> {
        let name = item.split.clone().unwrap_or_default();
        let mut split = self.splits.remove(&name).unwrap_or_default();
        match self.target {
            Target::WebDataset => self.add_to_tar(&name, &mut split, item, &bytes)?,
            Target::Parquet => self.add_to_table(&name, &mut split, item, bytes)?,
            Target::ImageFolder => {
                let file = self.put(Path::new(&safe(&name)), item, &bytes)?;
                let metadata = match &mut split.metadata {
                    Some(metadata) => metadata,
                    None => {
                        let path = Path::new(&safe(&name)).join("metadata.jsonl");
                        self.files.push(path.clone());
                        split.metadata.insert(AtomicFile::create(self.folder.join(path))?)
                    }
                };
                let mut row =
                    json!({"file_name": file, "image_id": item.image_id, "captions": item.captions, "text": item.first()});
                // Seen from the whole folder: `prepare --images` of it knows each file for certain.
                let under = if name.is_empty() { String::new() } else { safe(&name) + "/" };
                row["image_path"] = (under + &item.image_path).into();
                if !item.raws.is_empty() {
                    row["captions_raw"] = json!(item.raws);
                }
                if let Some(split) = &item.split {
                    row["split"] = split.as_str().into();
                }
                serde_json::to_writer(&mut *metadata, &row)?;
                metadata.write_all(b"\n")?;
            }
            Target::Kohya => {
                self.put(Path::new("images"), item, &bytes)?;
                let text = Path::new("images").join(inside(item)?).with_extension("txt");
                write_atomic(&self.folder.join(&text), (item.first().to_string() + "\n").as_bytes())?;
                self.files.push(text);
            }
            Target::Sidecar | Target::Coco => {}
        }
        self.splits.insert(name, split);
        Ok(())
    }

    /// Writes a picture under its own path, and says what that is below `under`.
    fn put(&mut self, under: &Path, item: &Item, bytes: &[u8]) -> Result<String> {
        let inside = inside(item)?;
        let path = under.join(&inside);
        write_atomic(&self.folder.join(&path), bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.files.push(path);
        Ok(inside.to_string_lossy().into_owned())
    }

    fn add_to_tar(&mut self, name: &str, split: &mut Split, item: &Item, bytes: &[u8]) -> Result<()> {
        if split.images == self.shard_images {
            split.tar.take().map(|tar| tar.finish()?.commit()).transpose()?;
        }
        let tar = match &mut split.tar {
            Some(tar) => tar,
            None => {
                let prefix = if name.is_empty() { String::new() } else { safe(name) + "-" };
                let path = PathBuf::from(format!("{prefix}{:06}.tar", split.shards));
                (split.shards, split.images) = (split.shards + 1, 0);
                let file = AtomicFile::create(self.folder.join(&path))?;
                self.files.push(path);
                split.tar.insert(TarWriter::new(file))
            }
        };
        let key = format!("{:06}{:06}", split.shards - 1, split.images);
        split.images += 1;
        let extension = item.image_path.rsplit_once('.').map_or("bin", |(_, extension)| extension).to_ascii_lowercase();
        let extension = if extension.contains('/') { "bin".into() } else { extension };
        let mut about = json!({
            "image_id": item.image_id,
            "image_path": item.image_path,
            "sha256": item.sha256,
            "split": item.split,
            "captions": item.captions,
        });
        if !item.raws.is_empty() {
            about["captions_raw"] = json!(item.raws);
        }
        tar.add(format!("{key}.{extension}").as_bytes(), bytes)?;
        tar.add(format!("{key}.txt").as_bytes(), item.first().as_bytes())?;
        tar.add(format!("{key}.json").as_bytes(), serde_json::to_string(&about)?.as_bytes())?;
        Ok(())
    }

    fn add_to_table(&mut self, name: &str, split: &mut Split, item: &Item, bytes: Vec<u8>) -> Result<()> {
        if split.images == self.shard_images {
            split.table.take().map(Rows::finish).transpose()?;
        }
        let table = match &mut split.table {
            Some(table) => table,
            None => {
                // A split's name in front is how `datasets` knows which one it is.
                let prefix = if name.is_empty() { "train".into() } else { safe(name) };
                let path = PathBuf::from(format!("{prefix}-{:05}.parquet", split.shards));
                (split.shards, split.images) = (split.shards + 1, 0);
                let table = Rows::create(&self.folder.join(&path))?;
                self.files.push(path);
                split.table.insert(table)
            }
        };
        split.images += 1;
        table.push(item, bytes)
    }

    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        for split in std::mem::take(&mut self.splits).into_values() {
            split.tar.map(|tar| tar.finish()?.commit()).transpose()?;
            split.table.map(Rows::finish).transpose()?;
            split.metadata.map(AtomicFile::commit).transpose()?;
        }
        if self.target == Target::Kohya {
            let text = "# For kohya's sd-scripts: --dataset_config. Set the resolution and batch size of your training.\n\
                        [general]\ncaption_extension = \".txt\"\nenable_bucket = true\n\n\
                        [[datasets]]\nresolution = 512\nbatch_size = 1\n\n  [[datasets.subsets]]\n  image_dir = \"images\"\n  num_repeats = 1\n";
            write_atomic(&self.folder.join("dataset.toml"), text.as_bytes())?;
            self.files.push("dataset.toml".into());
        }
        Ok(self.files)
    }
}

/// A picture's path below a folder, which it cannot leave.
fn inside(item: &Item) -> Result<PathBuf> {
    let path = relative_path(&item.image_path);
    let stays = !path.as_os_str().is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
    stays.then_some(path).with_context(|| format!("{}: leads out of the folder", item.image_path))
}

/// A split's name as a file name.
fn safe(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).collect()
}

/// Rows on their way into a Parquet file: image, image_id, text, captions, captions_raw, split.
struct Rows {
    sink: ParquetSink,
    schema: SchemaRef,
    images: Vec<Vec<u8>>,
    items: Vec<[Option<String>; 4]>,
    captions: ListBuilder<StringBuilder>,
    raws: ListBuilder<StringBuilder>,
    bytes: usize,
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

impl Rows {
    fn create(path: &Path) -> Result<Self> {
        let string = json!({"dtype": "string", "_type": "Value"});
        // What `datasets` looks for, so that the column is opened as pictures.
        let features = json!({"info": {"features": {
            "image": {"_type": "Image"}, "image_id": string, "text": string,
            "captions": {"feature": string, "_type": "List"}, "captions_raw": {"feature": string, "_type": "List"}, "split": string,
        }}});
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let fields = vec![
            Field::new("image", DataType::Struct(image_fields()), true),
            Field::new("image_id", DataType::Utf8, false),
            Field::new("text", DataType::Utf8, false),
            Field::new("captions", DataType::List(item.clone()), false),
            Field::new("captions_raw", DataType::List(item), false),
            Field::new("split", DataType::Utf8, true),
        ];
        let metadata = std::collections::HashMap::from([("huggingface".to_string(), features.to_string())]);
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let sink = ParquetSink::create(path, schema.clone(), "images/1")?;
        let [captions, raws] = [(); 2].map(|()| ListBuilder::new(StringBuilder::new()));
        Ok(Self { sink, schema, images: vec![], items: vec![], captions, raws, bytes: 0 })
    }

    fn push(&mut self, item: &Item, bytes: Vec<u8>) -> Result<()> {
        self.bytes += bytes.len();
        self.images.push(bytes);
        let texts = [Some(&item.image_path), Some(&item.image_id), item.captions.first(), item.split.as_ref()];
        self.items.push(texts.map(|text| text.cloned()));
        let raws = if item.raws.is_empty() { &item.captions } else { &item.raws };
        for (list, texts) in [(&mut self.captions, &item.captions), (&mut self.raws, raws)] {
            texts.iter().for_each(|text| list.values().append_value(text));
            list.append(true);
        }
        if self.bytes >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let items = std::mem::take(&mut self.items);
        let text = |at: usize| -> ArrayRef { Arc::new(items.iter().map(|item| item[at].as_deref()).collect::<StringArray>()) };
        let bytes = Arc::new(BinaryArray::from_iter_values(std::mem::take(&mut self.images)));
        let image = StructArray::try_new(image_fields(), vec![bytes, text(0)], None)?;
        let columns: Vec<ArrayRef> = [
            Arc::new(image) as ArrayRef,
            text(1),
            text(2),
            Arc::new(self.captions.finish()),
            Arc::new(self.raws.finish()),
            text(3),
        ]
        .into();
        self.bytes = 0;
        self.sink.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        Ok(self.sink.flush()?)
    }

    fn finish(mut self) -> Result<()> {
        if !self.items.is_empty() {
            self.write()?;
        }
        Ok(self.sink.finish()?)
    }
}
