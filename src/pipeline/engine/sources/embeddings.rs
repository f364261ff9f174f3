//! Embeddings in place of images: the parts that `embed` writes, a `.npy` file of vectors, or clip-retrieval's folder of both.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use half::f16;
use sha2::{Digest, Sha256};

use super::parquet_info;
use crate::dataset::naming::image_id;
use crate::files::{ContentHash, numbered_in, open_regular};
use crate::pipeline::engine::{Content, Entry};
use crate::pipeline::npy::{self, FloatType, NpyHeader};
use crate::table;

const FORMAT: &str = "embeddings/1";

/// Where a file says which encoder its embeddings come from.
pub const ENCODER_KEY: &str = "embedding_fingerprint";

/// Where a file says how its embeddings were made: a fingerprint of all that decides their numbers.
pub const SETTINGS_KEY: &str = "settings_fingerprint";

/// A list of embeddings, read as it is walked.
pub struct Embeddings {
    kind: Kind,
    /// D, the same in every row.
    pub embedding_dim: usize,
    /// Over all files.
    pub num_rows: u64,
    /// As the files say; `.npy` files say nothing.
    pub normalized: Option<bool>,
    /// The encoder they come from (`Bundle::embedding_fingerprint`), where the files say so.
    pub encoder: Option<String>,
    /// How they were made ([`SETTINGS_KEY`]), where the files say so.
    made_with: Option<String>,
    /// Rows go by the hash of an image, not of their numbers.
    by_image: bool,
}

enum Kind {
    Parts(Vec<PathBuf>),
    Npy(NpyFile),
    /// `img_emb_N.npy` and the rows of `metadata_N.parquet` that belong to it.
    ClipRetrieval(Vec<(NpyFile, PathBuf)>),
}

#[derive(Clone)]
struct NpyFile {
    path: PathBuf,
    header: NpyHeader,
}

type Entries = Box<dyn Iterator<Item = Result<Entry>> + Send>;

impl Embeddings {
    /// A folder of Parquet parts or of clip-retrieval's files, one Parquet file, or a `.npy` file of float32 or float16 [rows, D].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let parts = numbered(path, "part-", ".parquet")?;
            return match parts.is_empty() {
                false => Self::parts(parts),
                true if path.join("img_emb").is_dir() => Self::clip_retrieval(path),
                true => bail!("{}: no part-*.parquet in this folder; `clipcap embed --out FOLDER` makes them", path.display()),
            };
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
            return Self::parts(vec![path.into()]);
        }
        let file = NpyFile::open(path)?;
        let (embedding_dim, num_rows) = (file.header.shape[1], file.header.shape[0] as u64);
        Ok(Self {
            kind: Kind::Npy(file),
            embedding_dim,
            num_rows,
            normalized: None,
            encoder: None,
            made_with: None,
            by_image: false,
        })
    }

    fn clip_retrieval(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let (mut embedding_dim, mut num_rows, mut normalized, mut encoder) = (None, 0, None, None);
        let (mut made_with, mut by_image) = (None, false);
        for npy in numbered(&folder.join("img_emb"), "img_emb_", ".npy")? {
            let file = NpyFile::open(&npy)?;
            let name = npy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = name.replace("img_emb_", "metadata_").replace(".npy", ".parquet");
            let metadata = folder.join("metadata").join(name);
            let info = parquet_info(&metadata, Some(FORMAT))?;
            if info.num_rows != file.header.shape[0] as u64 {
                bail!("{} has {} rows and {} {}", metadata.display(), info.num_rows, npy.display(), file.header.shape[0]);
            }
            if *embedding_dim.get_or_insert(file.header.shape[1]) != file.header.shape[1] {
                bail!("{}: embeddings of another length than in the files before it", npy.display());
            }
            normalized = info.metadata.get("normalized").map(|text| text == "true");
            encoder = info.metadata.get(ENCODER_KEY).cloned();
            made_with = info.metadata.get(SETTINGS_KEY).cloned();
            by_image |= info.schema.field_with_name("sha256").is_ok();
            num_rows += info.num_rows;
            files.push((file, metadata));
        }
        let embedding_dim = embedding_dim.with_context(|| format!("{}: no img_emb_*.npy", folder.join("img_emb").display()))?;
        Ok(Self { kind: Kind::ClipRetrieval(files), embedding_dim, num_rows, normalized, encoder, made_with, by_image })
    }

    fn parts(parts: Vec<PathBuf>) -> Result<Self> {
        let (mut num_rows, mut known, mut by_image) = (0, None, false);
        for part in &parts {
            let info = parquet_info(part, Some(FORMAT))?;
            let field =
                info.schema.field_with_name("embedding").with_context(|| format!("{}: no column embedding", part.display()))?;
            let dim = match field.data_type() {
                DataType::FixedSizeList(item, length) if matches!(item.data_type(), DataType::Float32 | DataType::Float16) => {
                    *length as usize
                }
                other => {
                    bail!("{}: the column embedding is {other}, not a fixed-size list of float32 or float16", part.display())
                }
            };
            by_image |= info.schema.field_with_name("sha256").is_ok();
            let said = |key: &str| info.metadata.get(key).cloned();
            let facts = (dim, said("normalized").map(|text| text == "true"), said(ENCODER_KEY), said(SETTINGS_KEY));
            if *known.get_or_insert_with(|| facts.clone()) != facts {
                bail!("{}: embeddings of another length or made in another way than in {}", part.display(), parts[0].display());
            }
            num_rows += info.num_rows;
        }
        let (embedding_dim, normalized, encoder, made_with) = known.context("no parts")?;
        if embedding_dim == 0 {
            bail!("{}: embeddings of length 0", parts[0].display());
        }
        Ok(Self { kind: Kind::Parts(parts), embedding_dim, num_rows, normalized, encoder, made_with, by_image })
    }

    /// What decides, beside a row's hash, which numbers stand in it: how they were made, or all of them where that is not known.
    pub fn identity(&self) -> Result<serde_json::Value> {
        Ok(match &self.made_with {
            Some(settings) => serde_json::json!({"settings": settings}),
            None if self.by_image => serde_json::json!({"content": self.fingerprint()?}),
            None => true.into(),
        })
    }

    /// A hash of all files' bytes.
    pub fn fingerprint(&self) -> Result<String> {
        let files: Vec<&Path> = match &self.kind {
            Kind::Parts(parts) => parts.iter().map(PathBuf::as_path).collect(),
            Kind::Npy(file) => vec![&file.path],
            Kind::ClipRetrieval(files) => files.iter().flat_map(|(file, metadata)| [file.path.as_path(), metadata]).collect(),
        };
        let mut hasher = Sha256::new();
        for file in files {
            let hash = ContentHash::of_file(file).with_context(|| format!("cannot read {}", file.display()))?;
            hasher.update(hash.to_string());
        }
        Ok(ContentHash::from(hasher).to_string())
    }

    /// The embeddings, in order.
    pub fn entries(&self) -> Entries {
        match &self.kind {
            Kind::Parts(parts) => Box::new(parts.clone().into_iter().flat_map(|part| or_error(read_part(&part)))),
            Kind::Npy(file) => or_error(numbered_rows(file)),
            Kind::ClipRetrieval(files) => {
                Box::new(files.clone().into_iter().flat_map(|(file, metadata)| or_error(named_rows(&file, &metadata))))
            }
        }
    }
}

fn or_error(entries: Result<impl Iterator<Item = Result<Entry>> + Send + 'static>) -> Entries {
    match entries {
        Ok(entries) => Box::new(entries),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

/// Files called `PREFIX<digits>SUFFIX`, by number.
fn numbered(folder: &Path, prefix: &str, suffix: &str) -> Result<Vec<PathBuf>> {
    let found = numbered_in(folder, prefix, suffix).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn read_part(path: &Path) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    Ok(table::rows(path, Some(FORMAT), entries_of)?)
}

fn entries_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Entry>> {
    let text = |name| table::column::<StringArray>(batch, name, path);
    let ids = text("image_id")?;
    // Tables of others may lack these two: the id names the image then, and the numbers stand for its content.
    let (paths, hashes) = (text("image_path").ok(), text("sha256").ok());
    let damaged = table::column::<BooleanArray>(batch, "damaged", path).ok();
    let lists = batch.column_by_name("embedding").and_then(|c| c.as_fixed_size_list_opt()).context("no column embedding")?;
    let mut entries = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let values = floats(&lists.value(row)).context("the column embedding holds no floats")?;
        let sha256 = match hashes {
            Some(hashes) => hashes.value(row).parse().map_err(|error| anyhow!("row {row}: sha256 is {error}"))?,
            None => hash_of(&values),
        };
        entries.push(Entry {
            image_path: paths.unwrap_or(ids).value(row).into(),
            image_id: ids.value(row).into(),
            content: Content::Embedding { values, sha256, damaged: damaged.is_some_and(|column| column.value(row)) },
        });
    }
    Ok(entries)
}

/// A float32 or float16 array as float32 values.
fn floats(array: &dyn Array) -> Option<Vec<f32>> {
    if let Some(values) = array.as_primitive_opt::<Float32Type>() {
        return Some(values.values().to_vec());
    }
    array.as_primitive_opt::<Float16Type>().map(|values| values.values().iter().map(|v| v.to_f32()).collect())
}

/// A hash of a vector's float32 bytes.
fn hash_of(values: &[f32]) -> ContentHash {
    let mut hasher = Sha256::new();
    values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
    hasher.into()
}

impl NpyFile {
    fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).with_context(|| format!("cannot open {}", path.display()))?;
        let header = npy::read_header(&mut BufReader::new(&file), file.metadata()?.len())
            .with_context(|| format!("{}: not a .npy file of embeddings", path.display()))?;
        if header.shape.len() != 2 || header.shape[1] == 0 {
            bail!(
                "{}: an array of shape {:?}, and embeddings need two dimensions, rows and their length",
                path.display(),
                header.shape
            );
        }
        Ok(Self { path: path.into(), header })
    }

    /// The vectors, with a hash of each one's float32 bytes.
    fn rows(&self) -> Result<impl Iterator<Item = Result<(Vec<f32>, ContentHash)>> + Send + use<>> {
        let Self { path, header } = self.clone();
        let context = || format!("cannot open {}", self.path.display());
        let mut file = BufReader::with_capacity(1 << 18, open_regular(&path).with_context(context)?);
        std::io::copy(&mut file.by_ref().take(header.data_offset), &mut std::io::sink()).with_context(context)?;
        let mut bytes = vec![0; header.shape[1] * header.kind.size()];
        Ok((0..header.shape[0]).map(move |row| {
            file.read_exact(&mut bytes).with_context(|| format!("{}: row {row} cannot be read", path.display()))?;
            let values: Vec<f32> = match header.kind {
                FloatType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                FloatType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            };
            let hash = hash_of(&values);
            Ok((values, hash))
        }))
    }
}

/// A vector's name is its row number.
fn numbered_rows(file: &NpyFile) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    Ok(file.rows()?.enumerate().map(|(row, vector)| {
        let (values, sha256) = vector?;
        let name = row.to_string();
        Ok(Entry { image_path: name.clone(), image_id: name, content: Content::Embedding { values, sha256, damaged: false } })
    }))
}

/// Vectors with their names, and the hashes of the images where those are known, out of the metadata.
fn named_rows(file: &NpyFile, metadata: &Path) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    let names = table::rows(metadata, Some(FORMAT), names_of)?;
    Ok(file.rows()?.zip(names).map(|(vector, name)| {
        let ((values, hash), Named { image_id, image_path, sha256, damaged }) = (vector?, name?);
        Ok(Entry { image_path, image_id, content: Content::Embedding { values, sha256: sha256.unwrap_or(hash), damaged } })
    }))
}

/// A row of the metadata.
struct Named {
    image_id: String,
    image_path: String,
    sha256: Option<ContentHash>,
    damaged: bool,
}

fn names_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Named>> {
    let paths: &StringArray = table::column(batch, "image_path", path)?;
    let ids = table::column::<StringArray>(batch, "image_id", path).ok();
    let hashes = table::column::<StringArray>(batch, "sha256", path).ok();
    let damaged = table::column::<BooleanArray>(batch, "damaged", path).ok();
    let name = |row: usize| {
        let image_path = paths.value(row).to_string();
        Named {
            image_id: ids.map_or_else(|| image_id(&image_path).into_owned(), |ids| ids.value(row).to_string()),
            image_path,
            sha256: hashes.and_then(|hashes| hashes.value(row).parse().ok()),
            damaged: damaged.is_some_and(|column| column.value(row)),
        }
    };
    Ok((0..batch.num_rows()).map(name).collect())
}
