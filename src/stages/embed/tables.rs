//! What `embed` writes: numbered Parquet parts, or clip-retrieval's `.npy` and metadata.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BooleanArray, FixedSizeListArray, Float16Array, Float32Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use half::f16;

use super::Layout;
use super::images::StoredImageWriter;
use super::value::Embedding;
use crate::pipeline::npy::{FloatType, write_header};
use crate::pipeline::{Build, Entry, Record, Sink};
use crate::table::ParquetSink;

/// The manifest's and the footers' format.
pub const FORMAT: &str = "embeddings/1";

/// Images of a part, and of what is encoded at once.
const PART_IMAGES: usize = 10_000;
const ROWS_AT_ONCE: usize = 1024;

/// `write_header` gives arrays of any length up to 10^20 rows a header of this size.
const NPY_HEADER_BYTES: usize = 128;

/// Embeddings under construction.
pub struct EmbeddingSink {
    layout: Layout,
    dtype: FloatType,
    embedding_dim: usize,
    footer: Vec<(&'static str, String)>,
    folder: PathBuf,
    names: Vec<PathBuf>,
    /// image_id, image_path, sha256
    texts: [Vec<String>; 3],
    values: Vec<f32>,
    damaged: Vec<bool>,
    part_rows: usize,
    table: ParquetSink,
    npy: Option<Npy>,
    images: Option<StoredImageWriter>,
}

struct Npy {
    file: BufWriter<File>,
    rows: u64,
}

impl EmbeddingSink {
    /// Begins an output in `folder`. `footer` goes into the Parquet files beside their format. With `save_images`, the images' files are
    /// stored too; those that cannot be read any more are taken from the output that is there.
    pub fn create(
        folder: &Path,
        layout: Layout,
        dtype: FloatType,
        embedding_dim: usize,
        footer: Vec<(&'static str, String)>,
        save_images: Option<&Path>,
    ) -> Result<Self> {
        let first = table_name(layout, 0);
        let table = open_table(&folder.join(&first), layout, dtype, embedding_dim, &footer)?;
        let npy = match layout {
            Layout::Parquet | Layout::OneFile => None,
            Layout::Npy => Some(Npy::create(&folder.join(NPY_NAME))?),
        };
        let images = save_images.map(|before| StoredImageWriter::new(folder, before));
        let folder = folder.to_path_buf();
        let texts = Default::default();
        Ok(Self {
            layout,
            dtype,
            embedding_dim,
            footer,
            folder,
            names: vec![first],
            texts,
            values: vec![],
            damaged: vec![],
            part_rows: 0,
            table,
            npy,
            images,
        })
    }

    fn write_rows(&mut self) -> Result<()> {
        let rows = self.texts[0].len();
        if rows == 0 {
            return Ok(());
        }
        self.part_rows += rows;
        let texts = std::mem::take(&mut self.texts).map(|column| Arc::new(StringArray::from(column)) as ArrayRef);
        let values = std::mem::take(&mut self.values);
        let mut columns = texts.to_vec();
        match &mut self.npy {
            Some(npy) => npy.write(&values, rows, self.dtype)?,
            None => columns.push(list(values, self.dtype, self.embedding_dim)?),
        }
        columns.push(Arc::new(BooleanArray::from(std::mem::take(&mut self.damaged))));
        self.table.write(&RecordBatch::try_new(schema(self.layout, self.dtype, self.embedding_dim), columns)?)?;
        Ok(())
    }

    fn next_part(&mut self) -> Result<()> {
        self.write_rows()?;
        self.part_rows = 0;
        if self.layout != Layout::Parquet {
            // One file (of metadata, as there is one of embeddings); a row group ends here.
            return Ok(self.table.flush()?);
        }
        let name = table_name(self.layout, self.names.len());
        let next = open_table(&self.folder.join(&name), self.layout, self.dtype, self.embedding_dim, &self.footer)?;
        std::mem::replace(&mut self.table, next).finish()?;
        self.names.push(name);
        Ok(())
    }
}

const NPY_NAME: &str = "img_emb/img_emb_0.npy";

fn table_name(layout: Layout, part: usize) -> PathBuf {
    match layout {
        Layout::Parquet | Layout::OneFile => format!("part-{part:05}.parquet").into(),
        Layout::Npy => "metadata/metadata_0.parquet".into(),
    }
}

fn schema(layout: Layout, dtype: FloatType, embedding_dim: usize) -> SchemaRef {
    let mut fields: Vec<_> = ["image_id", "image_path", "sha256"].map(|name| Field::new(name, DataType::Utf8, false)).into();
    if layout != Layout::Npy {
        fields.push(Field::new("embedding", DataType::FixedSizeList(item(dtype), embedding_dim as i32), false));
    }
    fields.push(Field::new("damaged", DataType::Boolean, false));
    Arc::new(Schema::new(fields))
}

fn item(dtype: FloatType) -> Arc<Field> {
    let kind = match dtype {
        FloatType::F32 => DataType::Float32,
        FloatType::F16 => DataType::Float16,
    };
    Arc::new(Field::new("item", kind, false))
}

fn list(values: Vec<f32>, dtype: FloatType, embedding_dim: usize) -> Result<ArrayRef> {
    let values: ArrayRef = match dtype {
        FloatType::F32 => Arc::new(Float32Array::from(values)),
        FloatType::F16 => Arc::new(Float16Array::from_iter_values(values.into_iter().map(f16::from_f32))),
    };
    Ok(Arc::new(FixedSizeListArray::try_new(item(dtype), embedding_dim as i32, values, None)?))
}

fn open_table(
    path: &Path,
    layout: Layout,
    dtype: FloatType,
    embedding_dim: usize,
    footer: &[(&str, String)],
) -> Result<ParquetSink> {
    Ok(ParquetSink::create_with(path, schema(layout, dtype, embedding_dim), FORMAT, footer)?)
}

impl Npy {
    fn create(path: &Path) -> Result<Self> {
        let context = || format!("cannot write {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(path)).with_context(context)?;
        let mut file = BufWriter::new(File::create(path).with_context(context)?);
        file.write_all(&[0; NPY_HEADER_BYTES]).with_context(context)?;
        Ok(Self { file, rows: 0 })
    }

    fn write(&mut self, values: &[f32], rows: usize, dtype: FloatType) -> Result<()> {
        self.rows += rows as u64;
        for value in values {
            match dtype {
                FloatType::F32 => self.file.write_all(&value.to_le_bytes())?,
                FloatType::F16 => self.file.write_all(&f16::from_f32(*value).to_le_bytes())?,
            }
        }
        Ok(())
    }

    /// Only now the number of rows is known: the header is written over its place.
    fn finish(self, dtype: FloatType, embedding_dim: usize) -> Result<()> {
        let mut header = Vec::new();
        write_header(&mut header, dtype, self.rows, embedding_dim)?;
        anyhow::ensure!(header.len() == NPY_HEADER_BYTES, "a .npy header of {} bytes", header.len());
        let mut file = self.file.into_inner().map_err(|e| e.into_error())?;
        file.rewind()?;
        file.write_all(&header)?;
        Ok(file.sync_all()?)
    }
}

impl Sink<Embedding> for EmbeddingSink {
    fn add(&mut self, entry: &Entry, record: &Record<Embedding>) -> Result<()> {
        let (Ok(Embedding { values, damaged }), Some(sha256)) = (&record.result, &record.sha256) else {
            return Ok(());
        };
        anyhow::ensure!(
            values.len() == self.embedding_dim,
            "{}: an embedding of {} numbers among those of {}",
            entry.image_path,
            values.len(),
            self.embedding_dim
        );
        if self.part_rows + self.texts[0].len() == PART_IMAGES {
            self.next_part()?;
        }
        for (column, text) in self.texts.iter_mut().zip([entry.image_id.clone(), entry.image_path.clone(), sha256.to_string()]) {
            column.push(text);
        }
        self.values.extend_from_slice(values);
        self.damaged.push(*damaged);
        if let Some(images) = &mut self.images {
            images.add(entry, sha256)?;
        }
        if self.texts[0].len() >= ROWS_AT_ONCE { self.write_rows() } else { Ok(()) }
    }

    fn weight(&self, _: &Embedding) -> u64 {
        1
    }
}

impl Build<Embedding> for EmbeddingSink {
    fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.write_rows()?;
        self.table.finish()?;
        let mut names = self.names;
        if let Some(npy) = self.npy {
            npy.finish(self.dtype, self.embedding_dim)?;
            names.push(NPY_NAME.into());
        }
        if let Some(images) = self.images {
            names.extend(images.finish()?);
        }
        Ok(names)
    }
}
