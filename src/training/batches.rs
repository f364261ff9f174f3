//! Which captions go together, in which order, and how a batch looks to the training graph.

use image::RgbImage;

use super::corpus::{Captions, Corpus};
use crate::image::Preprocess;
use crate::random::{Stream, key};

/// Batches whose captions are sorted by length together: enough that a batch holds one length, or two.
const WINDOW: usize = 100;

/// Tells the stream of an epoch's order from those of dropout masks.
const ORDER: u64 = 0x6f72_6465;

/// The batches of one pass over the captions: a pure function of (lengths, batch size, seed, epoch).
///
/// Captions are shuffled and cut into windows; a window is sorted by length and cut into batches; the batches are shuffled. So every
/// caption comes once, almost nothing is padding, and what is in a batch differs from pass to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    order: Vec<u32>,
    /// Start and end in `order`.
    batches: Vec<(usize, usize)>,
}

impl Epoch {
    /// Captions, given in ascending order, in one that is a function of `seed` and `epoch`.
    pub fn shuffled(captions: &Captions, mut order: Vec<u32>, batch_size: usize, seed: u64, epoch: u64) -> Self {
        let mut stream = Stream::new(key(&[ORDER, seed, epoch]));
        stream.shuffle(&mut order);
        for window in order.chunks_mut(WINDOW * batch_size) {
            window.sort_by_key(|&caption| captions.ids(caption as usize).len());
        }
        let mut epoch = Self::cut(order, batch_size);
        stream.shuffle(&mut epoch.batches);
        epoch
    }

    /// Captions by length, for evaluation.
    pub fn sorted(captions: &Captions, mut order: Vec<u32>, batch_size: usize) -> Self {
        order.sort_by_key(|&caption| captions.ids(caption as usize).len());
        Self::cut(order, batch_size)
    }

    fn cut(order: Vec<u32>, batch_size: usize) -> Self {
        let len = order.len();
        let batches = (0..len).step_by(batch_size.max(1)).map(|start| (start, (start + batch_size).min(len))).collect();
        Self { order, batches }
    }

    /// Number of batches.
    pub fn num_batches(&self) -> usize {
        self.batches.len()
    }

    /// The captions of a batch, by their number.
    pub fn batch(&self, number: usize) -> &[u32] {
        let (start, end) = self.batches[number];
        &self.order[start..end]
    }
}

/// What the row of an image in a corpus is, and becomes in a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Images {
    /// Captions alone.
    None,
    /// float32 [D], as it is.
    Embeddings,
    /// uint8 [S, S, 3], to be rescaled and normalized.
    Pixels(Preprocess),
}

/// How sequences are laid out.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub images: Images,
    /// Positions of a prefix, P; 0 where rows begin with a token of their own.
    pub prefix_len: usize,
    /// Tokens of a prompt that each caption begins with, which are not learned.
    pub prompt_len: usize,
    /// Caption lengths T a batch may have, ascending; empty: any. A batch is padded to the next one.
    pub buckets: Vec<usize>,
    /// Padding up to this length counts in the loss as the token 0, as the original has it.
    pub loss_on_padding: Option<usize>,
}

impl Shape {
    /// The padded length of a batch whose longest caption has `longest` tokens.
    fn tokens(&self, longest: usize) -> usize {
        if let Some(tokens) = self.loss_on_padding {
            return tokens.max(longest);
        }
        self.buckets.iter().copied().find(|&bucket| bucket >= longest).unwrap_or(longest)
    }
}

/// Numbers of an input.
pub enum Numbers<'a> {
    F32(&'a mut [f32]),
    I64(&'a mut [i64]),
}

/// One batch as the training graph takes it. B rows, D embedding, S side of an image, P prefix, T caption tokens, M labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// B.
    pub rows: usize,
    /// T.
    pub tokens: usize,
    /// [B, D], or empty.
    pub clip_embeds: Vec<f32>,
    /// [B, 3, S, S], or empty; then a row is a pair, whose caption's last token is its label position, and its own number its label.
    pub pixel_values: Vec<f32>,
    /// [B, T], 0 behind a caption's end.
    pub caption_ids: Vec<i64>,
    /// [B, P + T]: 1 for the prefix and the caption.
    pub attention_mask: Vec<i64>,
    /// [M]: rows of the flattened states [B (P + T)] that predict a label.
    pub label_positions: Vec<i64>,
    /// [M].
    pub labels: Vec<i64>,
    /// [M]: what each label counts; empty where all count alike.
    pub label_weights: Vec<f32>,
    /// Real caption tokens, `[SEP]` included.
    pub caption_tokens: usize,
}

impl Batch {
    /// Lays out some captions.
    pub fn new(corpus: &Corpus, captions: &Captions, numbers: &[u32], shape: &Shape) -> Self {
        let rows: Vec<(usize, &[u32])> =
            numbers.iter().map(|&n| (captions.image_row(n as usize), captions.ids(n as usize))).collect();
        Self::of_rows(corpus, &rows, shape)
    }

    /// Lays out captions as (row of the image, token ids), some whose labels count by a weight of their caption.
    pub fn weighted(corpus: &Corpus, captions: &[(usize, &[u32])], weights: &[f32], shape: &Shape) -> Self {
        let mut batch = Self::of_rows(corpus, captions, shape);
        let positions = shape.prefix_len + batch.tokens;
        batch.label_weights = batch.label_positions.iter().map(|&at| weights[at as usize / positions]).collect();
        batch
    }

    fn of_rows(corpus: &Corpus, captions: &[(usize, &[u32])], shape: &Shape) -> Self {
        let longest = captions.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        let (rows, tokens) = (captions.len(), shape.tokens(longest));
        let positions = shape.prefix_len + tokens;
        let mut batch = Self {
            rows,
            tokens,
            caption_ids: vec![0; rows * tokens],
            attention_mask: vec![0; rows * positions],
            ..Self::default()
        };
        for (row, &(image_row, ids)) in captions.iter().enumerate() {
            batch.add_image(corpus, image_row, &shape.images);
            for (to, &id) in batch.caption_ids[row * tokens..].iter_mut().zip(ids) {
                *to = i64::from(id);
            }
            batch.attention_mask[row * positions..][..shape.prefix_len + ids.len()].fill(1);
            batch.caption_tokens += ids.len();
            if matches!(shape.images, Images::Pixels(_)) {
                batch.label_positions.push((row * tokens + ids.len()) as i64 - 1);
                batch.labels.push(row as i64);
                continue;
            }
            // Nothing predicts a row's first token where no prefix stands before it.
            let unpredicted = shape.prompt_len.max(usize::from(shape.prefix_len == 0));
            let labelled = if shape.loss_on_padding.is_some() { tokens } else { ids.len() };
            let unpredicted = unpredicted.min(labelled);
            // The state at a position predicts the token that follows it.
            let first = (row * positions + shape.prefix_len) as i64 - 1;
            batch.label_positions.extend((unpredicted as i64..labelled as i64).map(|token| first + token));
            batch.labels.extend_from_slice(&batch.caption_ids[row * tokens..][unpredicted..labelled]);
        }
        batch
    }

    fn add_image(&mut self, corpus: &Corpus, row: usize, images: &Images) {
        match images {
            Images::None => {}
            Images::Embeddings => self.clip_embeds.extend(corpus.embedding(row)),
            Images::Pixels(preprocess) => {
                let (width, height) = preprocess.output_size();
                let Some(pixels) = RgbImage::from_raw(width, height, corpus.image_bytes(row).to_vec()) else { return };
                let start = self.pixel_values.len();
                self.pixel_values.resize(start + pixels.len(), 0.0);
                preprocess.normalize_into(&pixels, &mut self.pixel_values[start..]);
            }
        }
    }

    /// The batch as a graph's inputs: names, numbers, shapes. `positions` says whether the graph takes `label_positions`.
    pub fn inputs(&mut self, positions: bool) -> Vec<(&'static str, Numbers<'_>, Vec<i64>)> {
        let (rows, tokens, labels) = (self.rows as i64, self.tokens as i64, self.labels.len() as i64);
        let per_row = |numbers: usize| numbers as i64 / rows.max(1);
        let caption_ids = ("caption_ids", Numbers::I64(&mut self.caption_ids), vec![rows, tokens]);
        if !self.pixel_values.is_empty() {
            let side = (per_row(self.pixel_values.len()) / 3).isqrt();
            return vec![
                ("pixel_values", Numbers::F32(&mut self.pixel_values), vec![rows, 3, side, side]),
                caption_ids,
                ("caption_ends", Numbers::I64(&mut self.label_positions), vec![labels]),
            ];
        }
        let mask = vec![rows, per_row(self.attention_mask.len())];
        let mut inputs = vec![
            caption_ids,
            ("attention_mask", Numbers::I64(&mut self.attention_mask), mask),
            ("labels", Numbers::I64(&mut self.labels), vec![labels]),
        ];
        if !self.clip_embeds.is_empty() {
            let shape = vec![rows, per_row(self.clip_embeds.len())];
            inputs.push(("clip_embeds", Numbers::F32(&mut self.clip_embeds), shape));
        }
        if !self.label_weights.is_empty() {
            inputs.push(("label_weights", Numbers::F32(&mut self.label_weights), vec![labels]));
        }
        if positions {
            inputs.push(("label_positions", Numbers::I64(&mut self.label_positions), vec![labels]));
        }
        inputs
    }

    /// The batch with as many rows as `rows` and a label for every caption position that is predicted, negative where none is: what graphs of
    /// fixed shape take. Rows that are added hold no caption.
    pub fn filled(&self, rows: usize, prefix_len: usize) -> Self {
        let rows = rows.max(self.rows);
        let positions = prefix_len + self.tokens;
        let mut batch = self.clone();
        let embedding_dim = self.clip_embeds.len() / self.rows.max(1);
        batch.rows = rows;
        batch.clip_embeds.resize(rows * embedding_dim, 0.0);
        batch.caption_ids.resize(rows * self.tokens, 0);
        batch.attention_mask.resize(rows * positions, 1);
        // The label stands one position after the state that predicts it; a first token without a prefix before it has none.
        let first = prefix_len.max(1);
        let columns = positions - first;
        batch.labels = vec![-1; rows * columns];
        batch.label_weights = if self.label_weights.is_empty() { vec![] } else { vec![0.0; rows * columns] };
        for (&position, &label) in self.label_positions.iter().zip(&self.labels) {
            let (row, at) = (position as usize / positions, position as usize % positions + 1 - first);
            batch.labels[row * columns + at] = label;
        }
        for (&position, &weight) in self.label_positions.iter().zip(&self.label_weights) {
            let (row, at) = (position as usize / positions, position as usize % positions + 1 - first);
            batch.label_weights[row * columns + at] = weight;
        }
        batch.label_positions.clear();
        batch
    }

    /// Share of the padded caption positions that hold no token.
    pub fn padding(&self) -> f64 {
        1.0 - self.caption_tokens as f64 / (self.rows * self.tokens).max(1) as f64
    }
}

/// Caption lengths for graphs of fixed shape: at most `count` of them, so that the tokens computed in vain are few. The last one is the
/// longest caption's.
pub fn buckets(captions: &Captions, count: usize) -> Vec<usize> {
    let longest = (0..captions.len()).map(|n| captions.ids(n).len()).max().unwrap_or(0);
    let mut histogram = vec![0u64; longest + 1];
    (0..captions.len()).for_each(|n| histogram[captions.ids(n).len()] += 1);
    let lengths: Vec<usize> = (1..=longest).filter(|&l| histogram[l] > 0).collect();
    if lengths.is_empty() || count == 0 {
        return vec![];
    }
    // best[k][j]: least computed tokens for the j shortest lengths with k buckets, the last ending at length j.
    let n = lengths.len();
    let up_to = |j: usize| lengths[..j].iter().map(|&l| histogram[l]).sum::<u64>();
    let captions_before: Vec<u64> = (0..=n).map(up_to).collect();
    let total = |i: usize, j: usize| (captions_before[j] - captions_before[i]) * lengths[j - 1] as u64;
    let mut best = vec![vec![(u64::MAX, 0usize); n + 1]; count + 1];
    best[0][0].0 = 0;
    for k in 1..=count {
        for j in 1..=n {
            for i in 0..j {
                let before = best[k - 1][i].0;
                if before != u64::MAX && before + total(i, j) < best[k][j].0 {
                    best[k][j] = (before + total(i, j), i);
                }
            }
        }
    }
    let mut k = (1..=count).min_by_key(|&k| best[k][n].0).unwrap_or(1);
    let (mut j, mut chosen) = (n, vec![]);
    while k > 0 && j > 0 {
        chosen.push(lengths[j - 1]);
        j = best[k][j].1;
        k -= 1;
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests;
