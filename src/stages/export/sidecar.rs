//! A text file beside each picture, and XMP beside that: never over one that is there, unless asked for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{ExportSettings, Exported, Item};
use crate::dataset::listing::relative_path;
use crate::files::{put_if_absent, write_atomic};
use crate::pipeline::sources::{Located, Place};
use crate::pipeline::{Interrupt, Reporter, Tick};
use crate::stages::Outcome;

/// Writes captions beside the pictures, or under the same names below `out`.
pub(super) fn write(
    settings: &ExportSettings,
    items: &[Item],
    reporter: &dyn Reporter,
    interrupt: &Interrupt,
) -> Result<Exported> {
    let located = Located::new(&settings.images)?;
    let mut ended = Exported { outcome: Outcome::Complete, exported: 0, failed: 0, kept: 0, out: settings.out.clone() };
    for (done, item) in (1..).zip(items) {
        if interrupt.is_set() {
            ended.outcome = Outcome::Interrupted;
            return Ok(ended);
        }
        match beside(settings, &located, item) {
            Ok(picture) => {
                let mut put = |path: &Path, content: &str| put(path, content, settings.overwrite, &mut ended.kept);
                put(&picture.with_extension("txt"), &(item.captions.join("\n") + "\n"))?;
                if settings.xmp {
                    put(&picture.with_extension("xmp"), &xmp(item))?;
                }
                ended.exported += 1;
            }
            Err(message) => {
                reporter.warn(&format!("{}: {message}", item.image_path));
                ended.failed += 1;
            }
        }
        reporter.tick(&Tick { label: "exporting", done, total: items.len() as u64, ..Tick::default() });
    }
    if ended.failed > 0 {
        ended.outcome = Outcome::SomeFailed;
    }
    Ok(ended)
}

/// The name that the sidecar's name is made of.
fn beside(settings: &ExportSettings, located: &Located, item: &Item) -> Result<PathBuf, String> {
    let place = located.find(&item.image_path).map_err(|failure| failure.message)?;
    if !place.path().is_file() {
        return Err("the picture is not there".into());
    }
    match (&settings.out, place) {
        (Some(out), _) => Ok(out.join(relative_path(&item.image_path))),
        (None, Place::File(picture)) => Ok(picture),
        (None, Place::Member { .. } | Place::Packed { .. }) => {
            Err("it is in a tar, where nothing can be added: give --out".into())
        }
    }
}

fn put(path: &Path, content: &str, overwrite: bool, kept: &mut u64) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if overwrite {
        return write_atomic(path, content.as_bytes()).with_context(context);
    }
    if std::fs::read(path).is_ok_and(|there| there == content.as_bytes()) {
        return Ok(());
    }
    if !put_if_absent(path, content.as_bytes()).with_context(context)? {
        *kept += 1;
    }
    Ok(())
}

/// The first caption as the picture's description; which language it is in is not said.
fn xmp(item: &Item) -> String {
    let mut caption = String::new();
    for character in item.first().chars() {
        match character {
            '&' => caption += "&amp;",
            '<' => caption += "&lt;",
            '>' => caption += "&gt;",
            c if c.is_control() && !matches!(c, '\n' | '\t') => {}
            c => caption.push(c),
        }
    }
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n  \
         <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\">\n   <dc:description>\n    <rdf:Alt>\n     \
         <rdf:li xml:lang=\"x-default\">{caption}</rdf:li>\n    </rdf:Alt>\n   </dc:description>\n  </rdf:Description>\n </rdf:RDF>\n\
         </x:xmpmeta>\n<?xpacket end=\"w\"?>\n"
    )
}
