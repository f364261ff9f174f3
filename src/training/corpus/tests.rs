use super::*;
use crate::text::Tokenizer;

const VOCABULARY: &str = "[PAD]\n[UNK]\n[SEP]\n一\n二\n三\n四\n五";

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(VOCABULARY.as_bytes(), Path::new("vocab.txt"), true).unwrap()
}

fn row(image_id: &str, caption: &str, split: &str) -> Result<CaptionRow, CorpusError> {
    Ok(CaptionRow { image_id: image_id.into(), caption_id: caption.len() as i32, caption: caption.into(), split: split.into() })
}

/// `count` captions of pseudo-random lengths up to `longest` tokens over `images` images.
pub fn corpus(folder: &Path, count: usize, images: usize, longest: usize) -> Corpus {
    let mut draws = crate::random::Stream::new(9);
    let captions = (0..count).map(|n| {
        let text: String =
            (0..draws.below(longest as u64)).map(|_| "一二三四五".chars().nth(draws.below(5) as usize).unwrap()).collect();
        row(&format!("{}", n * images / count), &text, if n % 10 == 9 { "dev" } else { "train" })
    });
    let captions: Vec<_> = captions.collect();
    let tokenized = Tokenized::new(captions.into_iter(), &tokenizer(), &Framing::caption(100)).unwrap();
    let embeddings = (0..images).map(|n| Ok::<_, CorpusError>((n.to_string(), vec![n as f32, 1.0])));
    tokenized.join_embeddings(embeddings, 2, false, folder, "f").unwrap();
    Corpus::open(folder, "f").unwrap().unwrap()
}

#[test]
fn captions_meet_the_embeddings_of_their_images() {
    let folder = tempfile::tempdir().unwrap();
    let captions = [
        row("a", "一二", "train"),
        row("b", "三", "train"),
        row("a", "二四五", "train"),
        row("c", "五", "dev"),
        row("x", "一", "dev"),
    ];
    let tokenized = Tokenized::new(captions.into_iter(), &tokenizer(), &Framing::caption(3)).unwrap();
    let embeddings = [("c", 3.0), ("unused", 9.0), ("a", 1.0), ("b", 2.0), ("a", 7.0)];
    let embeddings = embeddings.map(|(id, value)| Ok::<_, CorpusError>((id.to_string(), vec![value, 4.0])));
    let report = tokenized.join_embeddings(embeddings.into_iter(), 2, false, folder.path(), "one").unwrap();
    let wanted = JoinReport { captions: 4, images: 3, captions_without_image: 1, examples: vec!["x".into()], repeated_images: 1 };
    assert_eq!(report, wanted);
    let corpus = Corpus::open(folder.path(), "one").unwrap().unwrap();
    let ids: Vec<&[u32]> = (0..corpus.train.len()).map(|n| corpus.train.ids(n)).collect();
    // The third caption is cut after three ids and does not end with [SEP].
    assert_eq!(ids, [&[3u32, 4, 2][..], &[5, 2], &[4, 6, 7]]);
    let embedding = |captions: &Captions, n: usize| corpus.embedding(captions.image_row(n)).collect::<Vec<_>>();
    assert_eq!((embedding(&corpus.train, 0), embedding(&corpus.train, 1)), (vec![1.0, 4.0], vec![2.0, 4.0]));
    assert_eq!((corpus.dev.len(), embedding(&corpus.dev, 0)), (1, vec![3.0, 4.0]));
    assert_eq!((corpus.train.num_tokens(), corpus.join.captions_without_image), (8, 1));
    assert_eq!(corpus.name_training_captions(&[2, 0]).unwrap(), [("a".to_string(), 9), ("a".to_string(), 6)]);
    assert_eq!((corpus.sample_images(5), corpus.sample_images(0)), (vec![corpus.dev.image_row(0)], vec![]));
    assert!(Corpus::open(folder.path(), "two").unwrap().is_none());
    assert!(Corpus::open(&folder.path().join("nowhere"), "one").unwrap().is_none());
    // A file that was cut short is not believed.
    std::fs::write(folder.path().join(IMAGES), [0; 20]).unwrap();
    assert!(Corpus::open(folder.path(), "one").is_err());
}

#[test]
fn embeddings_are_scaled_on_request_and_checked() {
    let join = |values: Vec<f32>| {
        let folder = tempfile::tempdir().unwrap();
        let tokenized = Tokenized::new([row("a", "一", "train")].into_iter(), &tokenizer(), &Framing::caption(9)).unwrap();
        let embeddings = std::iter::once(Ok::<_, CorpusError>(("a".to_string(), values)));
        tokenized.join_embeddings(embeddings, 2, true, folder.path(), "f")?;
        Ok(Corpus::open(folder.path(), "f")?.unwrap().embedding(0).collect::<Vec<_>>())
    };
    let found: Result<_, CorpusError> = join(vec![3.0, 4.0]);
    assert_eq!(found.unwrap(), [0.6, 0.8]);
    assert_eq!(join(vec![0.0, 0.0]).unwrap(), [0.0, 0.0]);
    assert!(join(vec![1.0]).unwrap_err().to_string().contains("takes 2"));
    assert!(join(vec![1.0, f32::NAN]).unwrap_err().to_string().contains("finite"));
}

#[test]
fn rows_may_begin_with_cls_keep_their_end_and_hold_several_captions() {
    let vocabulary = "[PAD]\n[UNK]\n[SEP]\n一\n二\n三\n四\n五\n[CLS]";
    let tokenizer = Tokenizer::from_bytes(vocabulary.as_bytes(), Path::new("vocab.txt"), true).unwrap();
    let rows = |framing: Framing| -> Vec<Vec<u32>> {
        let captions = [("a", "一二"), ("a", "三"), ("a", "四五一"), ("b", "五"), ("b", "一二三四五")];
        let captions = captions.map(|(image, caption)| row(image, caption, "train"));
        let folder = tempfile::tempdir().unwrap();
        Tokenized::new(captions.into_iter(), &tokenizer, &framing).unwrap().without_images(folder.path(), "f").unwrap();
        let corpus = Corpus::open(folder.path(), "f").unwrap().unwrap();
        assert!(corpus.image_bytes(1).is_empty());
        (0..corpus.train.len()).map(|n| corpus.train.ids(n).to_vec()).collect()
    };
    let pairs = Framing { cls: true, always_sep: true, ..Framing::caption(5) };
    let wanted: [&[u32]; 5] = [&[8, 3, 4, 2], &[8, 5, 2], &[8, 6, 7, 3, 2], &[8, 7, 2], &[8, 3, 4, 5, 2]];
    assert_eq!(rows(pairs), wanted);
    let documents = Framing { cls: true, captions_per_row: 9, ..Framing::caption(6) };
    let wanted: [&[u32]; 4] = [&[8, 3, 4, 2, 5, 2], &[8, 6, 7, 3, 2], &[8, 7, 2], &[8, 3, 4, 5, 6, 7]];
    assert_eq!(rows(documents.clone()), wanted);
    let two = Framing { max_tokens: 99, captions_per_row: 2, ..documents.clone() };
    assert_eq!(rows(two).iter().map(Vec::len).collect::<Vec<_>>(), [6, 5, 9]);
    let without = Tokenized::new([row("a", "一", "train")].into_iter(), &self::tokenizer(), &documents);
    assert!(matches!(without, Err(CorpusError::Vocabulary(_))));
}

#[test]
fn a_pass_over_pairs_draws_one_caption_of_each_image() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), 5000, 1000, 9);
    let pass = |epoch| corpus.train.one_an_image(3, epoch);
    let images = |numbers: &[u32]| numbers.iter().map(|&n| corpus.train.image_row(n as usize)).collect::<Vec<_>>();
    let (first, second) = (pass(0), pass(1));
    let (mut rows, all) = (images(&first), images(&(0..corpus.train.len() as u32).collect::<Vec<_>>()));
    rows.dedup();
    assert_eq!(rows.len(), first.len());
    assert_eq!(rows.iter().collect::<std::collections::BTreeSet<_>>(), all.iter().collect());
    assert!(first.is_sorted() && first == pass(0));
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!((first.len() / 10..first.len() / 2).contains(&same), "{same} of {}", first.len());
}
