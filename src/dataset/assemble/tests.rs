//! How names become images, in small sets.

use std::path::PathBuf;

use super::super::captions::{ReadOptions, read_captions};
use super::*;

fn read(files: &[(&str, &str)], order: &[usize]) -> Captions {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = files
        .iter()
        .map(|(name, text)| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        })
        .collect();
    let ordered: Vec<PathBuf> = order.iter().map(|&i| paths[i].clone()).collect();
    read_captions(&ordered, &ReadOptions::default()).unwrap()
}

fn table(set: &Assembled) -> Vec<(String, i32, String, Option<String>)> {
    (0..set.places.len())
        .map(|at| {
            let image = &set.images[set.places[at].image as usize];
            (image.id.clone(), set.caption_ids[at], set.caption(at).to_string(), image.split.clone())
        })
        .collect()
}

const FILES: [(&str, &str); 2] =
    [("a-train.txt", "2#zhb#1 猫\n2#zhb#0 狗\n10#zhb#0 人\n2#zhb#0 狗 狗\n"), ("b-test.txt", "3#zhm#0 车\n2#zhm#0 鸟\n")];

#[test]
fn order_numbers_and_splits_do_not_depend_on_the_order_of_files() {
    let rule = SplitRule { own: true, ..SplitRule::default() };
    let one = assemble(read(&FILES, &[0, 1]), None, &rule);
    let two = assemble(read(&FILES, &[1, 0]), None, &rule);
    let row = |id: &str, n, text: &str, split: &str| (id.to_string(), n, text.to_string(), Some(split.to_string()));
    let expected = [
        row("10", 0, "人", "train"),
        row("2", 0, "狗", "test"),
        row("2", 1, "猫", "test"),
        row("2", 2, "鸟", "test"),
        row("3", 0, "车", "test"),
    ];
    assert_eq!(table(&one), expected);
    assert_eq!(table(&two), expected);
    assert_eq!((one.split_conflicts, one.captions.bad.len(), one.captions.files[0].bad), (1, 1, 1));
    assert!(one.captions.bad[0].bad.message.contains("line 2"));
    assert_eq!(one.captions.bad[0].line, 4);
}

fn with(captions: Captions, paths: &[&str]) -> Assembled {
    let ids = crate::dataset::naming::ids_of(paths.iter().copied());
    let listed: Vec<Listed> = paths.iter().zip(&ids).map(|(path, id)| Listed { path, id }).collect();
    assemble(captions, Some(&listed), &SplitRule::default())
}

#[test]
fn images_are_matched_and_those_without_captions_stay() {
    let files = [("c.jsonl", "{\"file_name\": \"x/1.jpg\", \"text\": \"狗\"}\n{\"file_name\": \"9.jpg\", \"text\": \"猫\"}\n")];
    let set = with(read(&files, &[0]), &["1.jpg", "2.jpg", "2.png"]);
    let images: Vec<_> = set.images.iter().map(|i| (i.id.as_str(), i.listed, i.captions)).collect();
    assert_eq!(images, [("1", Some(0), 1), ("2", Some(1), 0), ("2.png", Some(2), 0), ("9", None, 1)]);
}

#[test]
fn files_that_share_a_stem_are_images_of_their_own() {
    let files = [("c.csv", "image,caption\ns/1.jpg,甲\ns/1.png,乙\n"), ("d.tsv", "s/1\t丙\n")];
    let captions = |paths: Option<&[&str]>| {
        let captions = read(&files, &[0, 1]);
        let set = match paths {
            None => assemble(captions, None, &SplitRule::default()),
            Some(paths) => with(captions, paths),
        };
        let images: Vec<_> = set.images.iter().map(|i| (i.id.clone(), i.listed, i.captions)).collect();
        images
    };
    let image = |id: &str, listed, captions| (id.to_string(), listed, captions);
    assert_eq!(captions(None), [image("s/1", None, 2), image("s/1.png", None, 1)]);
    let there = captions(Some(&["s/1.jpg", "s/1.png"]));
    assert_eq!(there, [image("s/1", Some(0), 2), image("s/1.png", Some(1), 1)]);
    assert_eq!(captions(Some(&["s/1.jpg"])), [image("s/1", Some(0), 2), image("s/1.png", None, 1)]);
}

#[test]
fn a_file_that_another_name_means_for_certain_is_not_taken() {
    let files = [("c.csv", "image,caption\ntrain/1.jpg,训\nval/1.jpg,验\n")];
    let set = with(read(&files, &[0]), &["val/1.jpg"]);
    let images: Vec<_> = set.images.iter().map(|i| (i.id.as_str(), i.listed, i.captions)).collect();
    assert_eq!(images, [("train/1", None, 1), ("val/1", Some(0), 1)]);
}

#[test]
fn one_id_of_two_files_is_two_images() {
    let coco = |file: &str, caption: &str| {
        format!(
            r#"{{"images": [{{"id": 1, "file_name": "{file}"}}], "annotations": [{{"image_id": 1, "caption": "{caption}"}}]}}"#
        )
    };
    let documents = [("a.json", coco("x/a.jpg", "甲")), ("b.json", coco("y/a.jpg", "乙")), ("c.json", coco("a.jpg", "丙"))];
    let files: Vec<(&str, &str)> = documents.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let images = |paths: Option<&[&str]>| {
        let captions = read(&files, &[0, 1, 2]);
        let set = match paths {
            None => assemble(captions, None, &SplitRule::default()),
            Some(paths) => with(captions, paths),
        };
        set.images.iter().map(|i| (i.id.clone(), i.listed, i.captions)).collect::<Vec<_>>()
    };
    assert_eq!(images(None), [("1".into(), None, 2), ("y/a".into(), None, 1)]);
    assert_eq!(images(Some(&["x/a.jpg", "y/a.jpg"])), [("1".into(), Some(0), 2), ("y/a".into(), Some(1), 1)]);
}

#[test]
fn a_path_and_an_id_may_be_one_image() {
    let files = [("c.csv", "image,caption\nset/1.jpg,狗\n"), ("d.tsv", "1\t猫\n")];
    let set = with(read(&files, &[0, 1]), &["1.jpg"]);
    assert_eq!((set.images.len(), set.images[0].captions), (1, 2));
}

/// Who is whose: `id file captions` of each image, and why names have no file.
fn of(captions: &[(&str, &str)], paths: &[&str]) -> (Vec<String>, Vec<String>) {
    let set = with(read(captions, &(0..captions.len()).collect::<Vec<_>>()), paths);
    let file = |image: &Image| image.listed.map_or("-", |at| paths[at]).to_string();
    let images = set.images.iter().map(|image| format!("{} {} {}", image.id, file(image), image.captions)).collect();
    let unplaced = set.unplaced.iter().map(|line| format!("{} {}", line.bad.reason.name(), line.bad.message)).collect();
    (images, unplaced)
}

#[test]
fn names_that_could_both_be_a_file_are_told_and_have_none() {
    let (images, notes) = of(&[("c.tsv", "001/1.png\t狗\n002/1.png\t猫\n")], &["1.png", "2.png"]);
    assert_eq!(images, ["001/1 - 1", "002/1 - 1", "1 1.png 0", "2 2.png 0"]);
    assert!(notes.len() == 2 && notes.iter().all(|t| t.starts_with("image_conflict") && t.contains("001/1.png")), "{notes:?}");
    assert!(notes[0].contains("002/1.png") && notes[1].contains("002/1.png"));
    // In files of their own, too.
    let (images, _) = of(&[("a.tsv", "001/1.png\t狗\n"), ("b.tsv", "002/1.png\t猫\n")], &["1.png"]);
    assert_eq!(images, ["001/1 - 1", "002/1 - 1", "1 1.png 0"]);
    let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\ntest/1.png\t猫\n")], &["val/1.png"]);
    assert_eq!((images.len(), notes.len()), (3, 2));
}

#[test]
fn a_name_that_is_the_files_own_comes_before_others() {
    let (images, notes) = of(&[("c.tsv", "b.JPG\t鸟\nb.jpg\t鱼\n")], &["b.JPG", "b.jpg"]);
    assert_eq!((images, notes.len()), (vec!["b b.JPG 1".into(), "b.jpg b.jpg 1".into()], 0));
    let (images, notes) = of(&[("c.tsv", "b.JPG\t鸟\nb.jpg\t鱼\n")], &["b.jpg"]);
    assert_eq!((images, notes.len()), (vec!["b b.jpg 1".to_string(), "b.JPG - 1".into()], 1));
    let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\n1.png\t猫\n")], &["1.png"]);
    assert_eq!((images, notes.len()), (vec!["1 1.png 1".to_string(), "train/1 - 1".into()], 1));
}

#[test]
fn a_bare_name_is_the_file_that_has_it_whatever_else_is_named() {
    let captions = [("c.tsv", "a\t一\na.png\t二\n")];
    assert_eq!(of(&captions, &["a.jpg", "a.png"]).0, ["a a.jpg 1", "a.png a.png 1"]);
    assert_eq!(of(&captions, &["a.png"]).0, ["a a.png 2"]);
}

#[test]
fn what_no_file_is_says_so() {
    let (_, notes) = of(&[("c.tsv", "9.png\t狗\n1.png\t猫\n")], &["a/1.png", "b/1.png"]);
    assert_eq!(
        notes,
        ["missing_image no image file is 9.png", "image_conflict 1.png could be a/1.png or b/1.png: write more of the path"]
    );
    let (images, notes) = of(&[("c.tsv", "train/1.png\t狗\n")], &["val/1.png"]);
    assert_eq!(images, ["train/1 - 1", "val/1 val/1.png 0"]);
    assert!(notes[0].starts_with("missing_image") && notes[0].contains("val/1.png") && notes.len() == 1, "{notes:?}");
}

#[test]
fn a_file_name_decides_over_an_id() {
    let swapped = r#"{"images":[{"id":1,"file_name":"2.png"},{"id":2,"file_name":"1.png"}],"annotations":[{"id":1,"image_id":1,"caption":"二"},{"id":2,"image_id":2,"caption":"一"}]}"#;
    let two = ["1.png", "2.png"];
    assert_eq!(of(&[("c.json", swapped)], &two).0, ["1 2.png 1", "2 1.png 1"]);
    let csv = "image_id,file_name,caption\n1,2.png,二\n2,1.png,一\n";
    assert_eq!(of(&[("c.csv", csv)], &two).0, ["1 2.png 1", "2 1.png 1"]);
    let zero = r#"{"images":[{"id":0,"file_name":"1.png"},{"id":1,"file_name":"2.png"}],"annotations":[{"id":1,"image_id":0,"caption":"一"},{"id":2,"image_id":1,"caption":"二"}]}"#;
    assert_eq!(of(&[("c.json", zero)], &two).0, ["0 1.png 1", "1 2.png 1"]);
    let folders = zero.replace("1.png", "001/1.png").replace("2.png", "002/1.png");
    assert_eq!(of(&[("c.json", &folders)], &two).0, ["0 - 1", "1 - 1", "1.png 1.png 0", "2 2.png 0"]);
    let bare = "id,filename,caption\n1,2.png,二\n2,1.png,一\n";
    assert_eq!(of(&[("c.csv", bare)], &two).0, ["1 1.png 1", "2 2.png 1"]);
}
