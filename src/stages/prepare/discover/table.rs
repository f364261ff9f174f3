//! What was found, as a table for people and as JSON.

use serde_json::{Value as Json, json};
use unicode_width::UnicodeWidthStr;

use super::{Discovery, FileFound};
use crate::html::chart::thousands;

impl Discovery {
    /// A line a file: what it was taken for, and what is not taken and why.
    pub fn table(&self) -> String {
        let heads = ["file", "layout", "rows", "split", "language", "encoding", "images found", ""].map(String::from);
        let rows: Vec<[String; 8]> = std::iter::once(heads).chain(self.files.iter().map(row)).collect();
        let widths: Vec<usize> = (0..8).map(|at| rows.iter().map(|row| row[at].width()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| {
                let space = " ".repeat(width - cell.width());
                if matches!(at, 2 | 6) { format!("{space}{cell}") } else { format!("{cell}{space}") }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// The table, the images, and what the reader should know.
    pub fn to_text(&self) -> String {
        let mut text = self.table();
        text += &match &self.roots[..] {
            [] => "images   none\n".to_string(),
            [folder] if self.num_images > 0 => format!("images   {} ({})\n", folder.display(), thousands(self.num_images as u64)),
            tars => format!("images   in {} tars\n", tars.len()),
        };
        for note in &self.notes {
            text += &format!("note     {note}\n");
        }
        text
    }

    pub fn to_json(&self) -> Json {
        let files: Vec<Json> = self
            .files
            .iter()
            .map(|file| {
                json!({
                    "file": file.name, "layout": file.layout, "rows": file.rows, "bad": file.bad, "split": file.split,
                    "language": file.language, "encoding": file.encoding, "images_named": file.named, "images_found": file.found,
                    "taken": file.left.is_none(), "why_not": file.left,
                })
            })
            .collect();
        json!({"command": "prepare", "dry_run": true, "folder": self.folder, "files": files, "images": self.roots,
               "num_images": self.num_images, "notes": self.notes})
    }
}

fn row(file: &FileFound) -> [String; 8] {
    let found = match file.named {
        0 => String::new(),
        named => format!("{} of {}", thousands(file.found), thousands(named)),
    };
    let mut why = file.left.clone().map_or(String::new(), |why| format!("not taken: {why}"));
    if file.left.is_none() && file.bad > 0 {
        why = format!("{} bad lines", thousands(file.bad));
    }
    let rows = if file.rows == 0 { String::new() } else { thousands(file.rows) };
    [file.name.clone(), file.layout.clone(), rows, file.split.clone(), file.language.clone(), file.encoding.clone(), found, why]
}
