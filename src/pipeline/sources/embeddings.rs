//! Embeddings in place of images: the parts that `embed` writes, or a `.npy` file of vectors.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use half::f16;
use sha2::{Digest, Sha256};

use super::parquet_info;
use crate::pipeline::npy::{self, NpyHeader, NpyType};
use crate::pipeline::{Content, ContentHash, Entry};
use crate::table;

const FORMAT: &str = "embeddings/1";

/// A list of embeddings, read as it is walked.
pub struct Embeddings {
    kind: Kind,
    pub embedding_dim: usize,
    pub num_rows: u64,
    /// As the files say; `.npy` files say nothing.
    pub normalized: Option<bool>,
}

enum Kind {
    Parts(Vec<PathBuf>),
    Npy(PathBuf, NpyHeader),
}

impl Embeddings {
    /// A folder of Parquet parts, one Parquet file, or a `.npy` file of float32 or float16 [rows, D].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let mut parts = Vec::new();
            for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
                let entry = entry?.path();
                let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with("part-") && name.ends_with(".parquet") {
                    parts.push(entry);
                }
            }
            parts.sort();
            if parts.is_empty() {
                bail!("{}: no part-*.parquet in this folder; `clipcap embed --out FOLDER` makes them", path.display());
            }
            return Self::parts(parts);
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
            return Self::parts(vec![path.into()]);
        }
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let header = npy::read_header(&mut BufReader::new(&file), file.metadata()?.len())
            .with_context(|| format!("{}: not a .npy file of embeddings", path.display()))?;
        let [rows, embedding_dim] = header.shape[..] else {
            bail!(
                "{}: an array of shape {:?}, and embeddings need two dimensions, rows and their length",
                path.display(),
                header.shape
            );
        };
        if embedding_dim == 0 {
            bail!("{}: embeddings of length 0", path.display());
        }
        Ok(Self { kind: Kind::Npy(path.into(), header), embedding_dim, num_rows: rows as u64, normalized: None })
    }

    fn parts(parts: Vec<PathBuf>) -> Result<Self> {
        let (mut num_rows, mut known) = (0, None);
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
            let normalized = info.metadata.get("normalized").map(|text| text == "true");
            if *known.get_or_insert((dim, normalized)) != (dim, normalized) {
                bail!("{}: embeddings of another length or normalization than in {}", part.display(), parts[0].display());
            }
            num_rows += info.num_rows;
        }
        let (embedding_dim, normalized) = known.context("no parts")?;
        if embedding_dim == 0 {
            bail!("{}: embeddings of length 0", parts[0].display());
        }
        Ok(Self { kind: Kind::Parts(parts), embedding_dim, num_rows, normalized })
    }

    pub fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + Send + '_> {
        match &self.kind {
            Kind::Parts(parts) => Box::new(parts.iter().flat_map(|part| match read_part(part) {
                Ok(entries) => Box::new(entries) as Box<dyn Iterator<Item = Result<Entry>> + Send>,
                Err(error) => Box::new(std::iter::once(Err(error))),
            })),
            Kind::Npy(path, header) => match npy_rows(path, header, self.embedding_dim) {
                Ok(rows) => Box::new(rows),
                Err(error) => Box::new(std::iter::once(Err(error))),
            },
        }
    }
}

fn read_part(path: &Path) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    let path = path.to_path_buf();
    let batches = table::open(&path, Some(FORMAT))?;
    Ok(batches.flat_map(move |batch| match batch.map_err(anyhow::Error::from).and_then(|batch| entries_of(&batch, &path)) {
        Ok(entries) => entries.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error.context(format!("cannot read {}", path.display())))],
    }))
}

fn entries_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Entry>> {
    let text = |name| table::column::<StringArray>(batch, name, path);
    let (ids, paths, hashes) = (text("image_id")?, text("image_path")?, text("sha256")?);
    let lists = batch.column_by_name("embedding").and_then(|c| c.as_fixed_size_list_opt()).context("no column embedding")?;
    let mut entries = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let values = floats(&lists.value(row)).context("the column embedding holds no floats")?;
        let sha256 = parse_hash(hashes.value(row)).with_context(|| format!("row {row}: sha256 is not 64 hex digits"))?;
        entries.push(Entry {
            image_path: paths.value(row).into(),
            image_id: ids.value(row).into(),
            content: Content::Embedding { values, sha256 },
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

/// 64 hex digits as bytes.
pub(crate) fn parse_hash(text: &str) -> Option<ContentHash> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn npy_rows(path: &Path, header: &NpyHeader, embedding_dim: usize) -> Result<impl Iterator<Item = Result<Entry>> + Send + use<>> {
    let open = || -> Result<BufReader<File>> {
        let mut file = BufReader::with_capacity(1 << 18, File::open(path)?);
        std::io::copy(&mut file.by_ref().take(header.data_offset), &mut std::io::sink())?;
        Ok(file)
    };
    let mut file = open().with_context(|| format!("cannot open {}", path.display()))?;
    let path = path.to_path_buf();
    let (kind, rows) = (header.kind, header.shape[0]);
    let mut bytes = vec![0; embedding_dim * kind.size()];
    Ok((0..rows).map(move |row| {
        file.read_exact(&mut bytes).with_context(|| format!("{}: row {row} cannot be read", path.display()))?;
        let values: Vec<f32> = match kind {
            NpyType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            NpyType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        let mut hasher = Sha256::new();
        values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
        let name = row.to_string();
        Ok(Entry {
            image_path: name.clone(),
            image_id: name,
            content: Content::Embedding { values, sha256: hasher.finalize().into() },
        })
    }))
}
