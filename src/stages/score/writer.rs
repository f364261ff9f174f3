//! Scored tables: Parquet, CSV or JSON lines, by the name they are to have.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type, SchemaRef};
use serde_json::{Map, Value as Json};

use super::pairs::text_column;
use crate::files::AtomicFile;
use crate::table::ParquetSink;

/// What a name says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Parquet,
    Csv,
    JsonLines,
}

/// A table under construction; it is there when it is finished.
pub enum Writer {
    Parquet(Box<ParquetSink>),
    Csv(Box<csv::Writer<AtomicFile>>),
    JsonLines(AtomicFile),
}

impl Writer {
    pub fn kind(out: &Path) -> Option<Kind> {
        match out.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Kind::Parquet),
            "csv" => Some(Kind::Csv),
            "jsonl" | "ndjson" => Some(Kind::JsonLines),
            _ => None,
        }
    }

    pub fn create(out: &Path, schema: SchemaRef, format: &str, footer: &[(&str, String)], bom: bool) -> Result<Self> {
        let kind =
            Self::kind(out).with_context(|| format!("--out {}: a name that ends in .parquet, .csv or .jsonl", out.display()))?;
        Ok(match kind {
            Kind::Parquet => Self::Parquet(Box::new(ParquetSink::create_with(out, schema, format, footer)?)),
            Kind::Csv => {
                let mut file = AtomicFile::create(out)?;
                if bom {
                    file.write_all("\u{feff}".as_bytes())?;
                }
                let mut writer = csv::Writer::from_writer(file);
                writer.write_record(schema.fields().iter().map(|field| field.name()))?;
                Self::Csv(Box::new(writer))
            }
            Kind::JsonLines => Self::JsonLines(AtomicFile::create(out)?),
        })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Self::Parquet(sink) => Ok(sink.write(batch)?),
            Self::Csv(writer) => {
                let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
                let columns = names.iter().map(|name| text_column(batch, name)).collect::<Result<Vec<_>>>()?;
                for row in 0..batch.num_rows() {
                    let cells = columns.iter().map(|column| if column.is_null(row) { "" } else { column.value(row) });
                    writer.write_record(cells)?;
                }
                Ok(())
            }
            Self::JsonLines(file) => {
                for row in 0..batch.num_rows() {
                    let mut object = Map::new();
                    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                        object.insert(field.name().clone(), value(batch, field.name(), column, row)?);
                    }
                    writeln!(file, "{}", Json::Object(object))?;
                }
                Ok(())
            }
        }
    }

    pub fn finish(self) -> Result<()> {
        match self {
            Self::Parquet(sink) => Ok(sink.finish()?),
            Self::Csv(writer) => {
                let file = writer.into_inner().map_err(|error| anyhow::anyhow!("{}", error.error()))?;
                Ok(file.commit()?)
            }
            Self::JsonLines(file) => Ok(file.commit()?),
        }
    }
}

/// A cell: numbers as numbers, everything else as text.
fn value(batch: &RecordBatch, name: &str, column: &dyn Array, row: usize) -> Result<Json> {
    if column.is_null(row) {
        return Ok(Json::Null);
    }
    Ok(match column.data_type() {
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        // As it reads, not as it widens.
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).to_string().parse::<f64>()?.into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        _ => text_column(batch, name)?.value(row).into(),
    })
}
