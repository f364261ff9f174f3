//! What a finished caption table holds, image by image, so that the next run computes only what is missing.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, BooleanArray, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray};

use super::tables::{FORMAT, Row, TableFormat, unquoted};
use super::value::{CaptionText, Captions, finish_reason};
use crate::files::{between, paths_in};
use crate::pipeline::{Output, Record};
use crate::table;

type Rows = Box<dyn Iterator<Item = Result<Row<'static>>>>;

/// The records of a finished table. A `.tsv` holds too little to go on from.
pub(super) fn records(
    output: &Output,
    format: TableFormat,
    quotes_formulas: bool,
) -> Result<impl Iterator<Item = Result<Record<Captions>>> + use<>> {
    Ok(images(output.path(), format, quotes_formulas)?.map(|image| Ok(image?.1)))
}

/// The images of a table, in its order, with their ids. `quotes_formulas`: as it was written.
pub(in crate::stages) fn images(
    path: &Path,
    format: TableFormat,
    quotes_formulas: bool,
) -> Result<impl Iterator<Item = Result<(String, Record<Captions>)>> + use<>> {
    let rows: Rows = match format {
        TableFormat::Parquet => Box::new(table::rows(path, Some(FORMAT), rows_of)?),
        TableFormat::Parts => {
            let mut rows: Rows = Box::new(std::iter::empty());
            for part in parts(path)? {
                rows = Box::new(rows.chain(table::rows(&part, Some(FORMAT), rows_of)?));
            }
            rows
        }
        TableFormat::Csv => {
            let reader = csv::Reader::from_path(path).with_context(|| format!("cannot open {}", path.display()))?;
            let plain =
                move |text: Cow<'static, str>| if quotes_formulas { Cow::Owned(unquoted(&text).to_string()) } else { text };
            Box::new(reader.into_deserialize::<Row<'static>>().map(move |row| {
                let row = row?;
                let [image_id, image_path, caption] = [row.image_id, row.image_path, row.caption].map(plain);
                Ok(Row { image_id, image_path, caption, ..row })
            }))
        }
        TableFormat::JsonLines => {
            let file = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
            Box::new(file.lines().map(|line| Ok(serde_json::from_str(&line?)?)))
        }
        TableFormat::Tsv => Box::new(std::iter::empty()),
    };
    let path = path.to_path_buf();
    let mut rows = rows.peekable();
    Ok(std::iter::from_fn(move || {
        let first = rows.next()?;
        let record = first.and_then(|first| {
            let (image_id, image_path) = (first.image_id.to_string(), first.image_path.to_string());
            let sha256 = first.sha256.parse().map_err(|error| anyhow!("a sha256 that is {error}"))?;
            let (mut captions, damaged, mut last) = (vec![caption(&first)?], first.damaged, first.caption_index);
            while let Some(Ok(next)) = rows.peek()
                && next.image_path == image_path
                && next.caption_index > last
            {
                last = next.caption_index;
                captions.push(caption(next)?);
                rows.next();
            }
            let result = Ok(Captions { texts: captions, damaged });
            Ok((image_id, Record { image_path, stat: None, sha256: Some(sha256), result }))
        });
        Some(record.with_context(|| format!("{}: cannot resume from this table; --overwrite replaces it", path.display())))
    }))
}

/// The image_paths in the original's table.
pub(in crate::stages) fn names(output: &Output, quotes_formulas: bool) -> Result<Vec<String>> {
    let path = output.path();
    let context = || format!("cannot read {}", path.display());
    let file = BufReader::new(File::open(path).with_context(context)?);
    let name = |line: Result<String, _>| {
        let line = line.with_context(context)?;
        let cell = line.trim_start_matches('\u{feff}').split('\t').next().unwrap_or_default();
        Ok(if quotes_formulas { unquoted(cell) } else { cell }.to_string())
    };
    file.lines().map(name).collect()
}

fn caption(row: &Row) -> Result<CaptionText> {
    Ok(CaptionText {
        text: row.caption.to_string(),
        logprob: row.logprob,
        num_tokens: row.num_tokens,
        finish_reason: finish_reason(&row.finish_reason)
            .with_context(|| format!("unknown finish_reason {:?}", row.finish_reason))?,
        index: row.caption_index,
        clip_score: row.clip_score,
    })
}

fn parts(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut parts = paths_in(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    parts.retain(|path| between(path, "part-", ".parquet").is_some());
    Ok(parts)
}

fn rows_of(batch: &RecordBatch, path: &Path) -> Result<Vec<Row<'static>>> {
    let text = |name| table::column::<StringArray>(batch, name, path);
    let (ids, paths, hashes) = (text("image_id")?, text("image_path")?, text("sha256")?);
    let (captions, reasons) = (text("caption")?, text("finish_reason")?);
    let indexes: &Int32Array = table::column(batch, "caption_index", path)?;
    let num_tokens: &Int32Array = table::column(batch, "num_tokens", path)?;
    let logprobs: &Float64Array = table::column(batch, "logprob", path)?;
    let damaged = table::column::<BooleanArray>(batch, "damaged", path).ok();
    let scores = table::column::<Float32Array>(batch, "clip_score", path).ok();
    let owned = |column: &StringArray, row: usize| column.value(row).to_string().into();
    Ok((0..batch.num_rows())
        .map(|row| Row {
            image_id: owned(ids, row),
            image_path: owned(paths, row),
            sha256: owned(hashes, row),
            caption_index: indexes.value(row),
            caption: owned(captions, row),
            logprob: logprobs.value(row),
            num_tokens: num_tokens.value(row),
            finish_reason: owned(reasons, row),
            damaged: damaged.is_some_and(|column| column.value(row)),
            clip_score: scores.filter(|column| column.is_valid(row)).map(|column| column.value(row)),
            rank: None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apostrophe_is_a_mark_only_where_cells_are_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let (csv, tsv) = (folder.path().join("t.csv"), folder.path().join("t.tsv"));
        let hash = "0".repeat(64);
        let header = "image_id,image_path,sha256,caption_index,caption,logprob,num_tokens,finish_reason,damaged";
        std::fs::write(&csv, format!("{header}\n'=a,'=a.png,{hash},0,'-一,-1.0,2,eos,false\n")).unwrap();
        std::fs::write(&tsv, "'=a.png\t'-一\n").unwrap();
        for (quotes, path, text) in [(true, "=a.png", "-一"), (false, "'=a.png", "'-一")] {
            let mut read = images(&csv, TableFormat::Csv, quotes).unwrap();
            let (_, record) = read.next().unwrap().unwrap();
            assert_eq!((record.image_path.as_str(), record.result.unwrap().texts[0].text.as_str()), (path, text));
            assert_eq!(names(&Output::file(&tsv), quotes).unwrap(), [path]);
        }
    }
}
