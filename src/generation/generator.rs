//! The scheduler: images in, captions out, with the decoder's rows kept full.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::answers::{Question, answer, answer_best, check_logits};
use super::batch::Batch;
use super::caption::Caption;
use super::constraints::Rules;
use super::images::{CaptionText, Images, Start};
use super::search::{Choice, NotFinite, Progress, Scratch, Search};
use super::{DecodeStats, GenerationError, Settings, SettingsError, SpecialTokens};
use crate::files::ContentHash;
use crate::models::decoder::{Decoder, Logits, Picked};

/// An image to caption.
#[derive(Debug, Clone)]
pub struct Request {
    /// The caller's name for it.
    pub index: u64,
    /// Seeds its samples.
    pub sha256: ContentHash,
    /// [P, C]
    pub prefix_embeds: Vec<f32>,
}

/// All captions of an image, in caption_index order. There may be fewer than asked for with `distinct`, or where beam search finds no
/// more; there is always one.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedImage {
    pub index: u64,
    pub captions: Vec<Caption>,
}

/// Makes captions with one set of settings.
pub struct Generator {
    rules: Rules,
    text: Option<CaptionText>,
    /// One for each thread.
    scratch: Vec<Scratch>,
}

/// A search that has its first token and waits for rows.
struct Waiting {
    prefix: usize,
    ticket: u64,
    draw: u32,
    search: Search,
    num_rows: usize,
}

impl Generator {
    /// # Errors
    /// Settings that make no sense ([`Settings::validate`]).
    pub fn new(settings: Settings, tokens: SpecialTokens) -> Result<Self, SettingsError> {
        settings.validate()?;
        let scratch = (0..rayon::current_num_threads()).map(|_| Scratch::default()).collect();
        Ok(Self { rules: Rules { settings, tokens }, text: None, scratch })
    }

    /// With `distinct`, captions are compared by this text instead of by token ids (which may differ and read the same).
    #[must_use]
    pub fn comparing(mut self, text: impl Fn(&[u32]) -> String + Send + 'static) -> Self {
        self.text = Some(Box::new(text));
        self
    }

    /// Which of a row's logits are enough for nearly every choice.
    pub fn picked(&self) -> Picked {
        let (count, temperature) = super::best::wanted(&self.rules);
        Picked { count, temperature }
    }

    /// Captions all images that `next` hands over, until it returns None; `done` is called once for each image as soon as its captions
    /// are finished, which need not be in list order.
    ///
    /// `next` is asked for more when rows would stay empty without; what it returns at a time has no influence on batches or captions,
    /// only the order of images has. It is not asked again after None, so returning None early ends the run with what was started. At
    /// any time, about two batches of images are held, however many there are.
    ///
    /// # Errors
    /// Errors of `next` and `done` come back as they are; the others are a decoder that failed or that does not fit the settings or the
    /// requests. The generator may be used again after an error; the decoder's rows are in an unknown state then.
    pub fn run<E: From<GenerationError>>(
        &mut self,
        decoder: &mut dyn Decoder,
        mut next: impl FnMut() -> Result<Option<Vec<Request>>, E>,
        mut done: impl FnMut(FinishedImage) -> Result<(), E>,
    ) -> Result<DecodeStats, E> {
        self.check(decoder)?;
        decoder.gather_rows(&[]).map_err(GenerationError::from)?;
        let prefill_images = self.prefill_images(decoder);
        let mut run = Run {
            rules: &self.rules,
            text: self.text.as_ref(),
            scratch: &mut self.scratch,
            decoder,
            images: Images::default(),
            waiting: VecDeque::new(),
            batch: Batch::default(),
            finished: Vec::new(),
            stats: DecodeStats::default(),
        };
        let mut ended = false;
        loop {
            run.admit()?;
            if run.waiting.is_empty() && run.has_room() {
                while !ended && run.images.num_waiting() < prefill_images {
                    let start = Instant::now();
                    let requests = next()?;
                    run.stats.source_time += start.elapsed();
                    ended = requests.is_none();
                    for request in requests.into_iter().flatten() {
                        run.add(request)?;
                    }
                }
                if run.images.num_waiting() > 0 {
                    run.prefill(prefill_images)?;
                } else if run.batch.num_searches() == 0 {
                    return Ok(run.stats);
                } else {
                    run.step()?;
                }
            } else {
                run.step()?;
            }
            let start = Instant::now();
            for image in run.finished.drain(..) {
                run.stats.num_images += 1;
                run.stats.num_captions += image.captions.len() as u64;
                run.stats.num_tokens += image.captions.iter().map(|caption| caption.num_tokens as u64).sum::<u64>();
                done(image)?;
            }
            run.stats.sink_time += start.elapsed();
        }
    }

    fn check(&self, decoder: &dyn Decoder) -> Result<(), GenerationError> {
        let settings = &self.rules.settings;
        let (num_beams, max_rows) = (settings.rows_per_search(), decoder.max_rows());
        if num_beams > max_rows {
            return Err(GenerationError::TooFewRows { num_beams, max_rows });
        }
        let (max_new_tokens, limit) = (settings.max_new_tokens, decoder.max_new_tokens());
        if max_new_tokens > limit {
            return Err(GenerationError::TooManyTokens { max_new_tokens, limit });
        }
        let vocab_size = decoder.vocab_size();
        let banned = self.rules.tokens.banned.iter().map(|&id| ("banned", id));
        for (what, id) in banned.chain(self.rules.tokens.ends.iter().map(|&id| ("what ends a caption", id))) {
            if id as usize >= vocab_size {
                return Err(GenerationError::UnknownToken { what, id, vocab_size });
            }
        }
        Ok(())
    }

    /// Prefixes that are run together: enough to fill the rows, but not so many that the first caption waits for long.
    fn prefill_images(&self, decoder: &dyn Decoder) -> usize {
        let rows_per_image = self.rules.settings.rows_per_search() * self.rules.settings.searches_per_image();
        (decoder.max_rows() / rows_per_image).clamp(1, decoder.max_prefixes())
    }
}

/// A run under way.
struct Run<'a> {
    rules: &'a Rules,
    text: Option<&'a CaptionText>,
    scratch: &'a mut [Scratch],
    decoder: &'a mut dyn Decoder,
    images: Images,
    /// Searches of the prefixes that the decoder holds, in list order.
    waiting: VecDeque<Waiting>,
    batch: Batch,
    /// Complete, and not handed over yet.
    finished: Vec<FinishedImage>,
    stats: DecodeStats,
}

impl Run<'_> {
    /// Whether one more search fits. A search keeps room for all its beams, also while it has fewer.
    fn has_room(&self) -> bool {
        (self.batch.num_searches() + 1) * self.rules.settings.rows_per_search() <= self.decoder.max_rows()
    }

    fn add(&mut self, request: Request) -> Result<(), GenerationError> {
        let (prefix_len, n_embd) = (self.decoder.prefix_len(), self.decoder.n_embd());
        let found = request.prefix_embeds.len();
        if found != prefix_len * n_embd {
            return Err(GenerationError::Prefix { index: request.index, found, prefix_len, n_embd });
        }
        self.images.add(request, self.rules.settings.searches_per_image());
        Ok(())
    }

    /// Gives rows to the searches that wait, in list order, while there is room.
    fn admit(&mut self) -> Result<(), GenerationError> {
        while self.has_room()
            && let Some(Waiting { prefix, ticket, draw, search, num_rows }) = self.waiting.pop_front()
        {
            let start = Instant::now();
            for _ in 0..num_rows {
                self.decoder.start_row(prefix)?;
            }
            self.stats.gather_time += start.elapsed();
            self.batch.admit(ticket, draw, search, num_rows);
        }
        Ok(())
    }

    /// Runs the next prefixes and takes the first token of each of their searches; those that end at once need no row.
    fn prefill(&mut self, prefill_images: usize) -> Result<(), GenerationError> {
        let starts = self.images.take(prefill_images);
        let mut prefixes = Vec::with_capacity(starts.len() * self.decoder.prefix_len() * self.decoder.n_embd());
        for start in &starts {
            prefixes.extend_from_slice(&self.images.request(start.ticket).prefix_embeds);
        }
        let vocab_size = self.decoder.vocab_size();
        let num_prefixes = starts.len();
        let mut searches = Vec::new();
        for (prefix, Start { ticket, draws }) in starts.into_iter().enumerate() {
            for draw in draws {
                let search = Search::new(self.rules, &self.images.request(ticket).sha256, draw);
                searches.push(Waiting { prefix, ticket, draw, search, num_rows: 0 });
            }
        }
        let asked: Vec<Question> =
            searches.iter().map(|Waiting { prefix, search, .. }| Question { search, row: 0, place: *prefix }).collect();
        let clock = Instant::now();
        let logits = self.decoder.prefill_best(&prefixes, num_prefixes)?;
        self.stats.prefill_time += clock.elapsed();
        self.stats.num_prefills += 1;
        self.stats.num_prefixes += num_prefixes as u64;
        let time = &mut self.stats.choose_time;
        let choices = match logits {
            Logits::Whole(logits) => {
                check_logits(logits.len(), num_prefixes, vocab_size)?;
                answer(self.rules, &asked, &logits, vocab_size, self.scratch, time)
            }
            Logits::Best(best) => answer_best(self.rules, &asked, &best, num_prefixes, self.decoder, self.scratch, time)?,
        };
        for (mut waiting, choice) in searches.into_iter().zip(choices) {
            let choice = choice.map_err(|NotFinite| self.not_finite(waiting.ticket, 0))?;
            match waiting.search.advance(self.rules, vec![choice]) {
                Progress::Rows(parents) => {
                    waiting.num_rows = parents.len();
                    self.waiting.push_back(waiting);
                }
                Progress::Finished(captions) => self.settle(waiting.ticket, waiting.draw, captions),
            }
        }
        Ok(())
    }

    /// One token more for each row.
    fn step(&mut self) -> Result<(), GenerationError> {
        let last = |tokens: &[u32]| *tokens.last().expect("a row starts with its first token");
        let tokens: Vec<u32> = self.batch.rows().map(|(active, row)| last(active.search.tokens(row))).collect();
        let vocab_size = self.decoder.vocab_size();
        let rows = self.batch.rows().enumerate();
        let asked: Vec<Question> = rows.map(|(place, (active, row))| Question { search: &active.search, row, place }).collect();
        let clock = Instant::now();
        let logits = self.decoder.step_best(&tokens)?;
        self.stats.step_time += clock.elapsed();
        self.stats.num_steps += 1;
        self.stats.num_row_steps += tokens.len() as u64;
        let time = &mut self.stats.choose_time;
        let answers = match logits {
            Logits::Whole(logits) => {
                check_logits(logits.len(), tokens.len(), vocab_size)?;
                answer(self.rules, &asked, &logits, vocab_size, self.scratch, time)
            }
            Logits::Best(best) => answer_best(self.rules, &asked, &best, tokens.len(), self.decoder, self.scratch, time)?,
        };
        let mut choices = Vec::with_capacity(answers.len());
        for (row, choice) in answers.into_iter().enumerate() {
            match choice {
                Ok(choice) => choices.push(Some(choice)),
                Err(NotFinite) => {
                    let (active, own) = self.batch.rows().nth(row).expect("a row for each answer");
                    return Err(self.not_finite(active.ticket, active.search.tokens(own).len()));
                }
            }
        }
        self.advance(choices)
    }

    /// Takes each search one token further; `choices` are by row.
    fn advance(&mut self, mut choices: Vec<Option<Choice>>) -> Result<(), GenerationError> {
        let searches: Vec<(u64, Vec<Choice>)> = self
            .batch
            .searches()
            .map(|(number, rows)| {
                let own = rows.iter().map(|&row| choices[row].take().expect("no two searches share a row"));
                (number, own.collect())
            })
            .collect();
        let mut parents = BTreeMap::new();
        for (number, choices) in searches {
            match self.batch.search_mut(number).advance(self.rules, choices) {
                Progress::Rows(rows) => {
                    parents.insert(number, rows);
                }
                Progress::Finished(captions) => {
                    let active = self.batch.remove(number);
                    self.settle(active.ticket, active.draw, captions);
                }
            }
        }
        let sources = self.batch.rearrange(&parents);
        let num_moved = sources.iter().enumerate().filter(|&(row, &source)| row != source).count();
        if num_moved > 0 || sources.len() < choices.len() {
            let clock = Instant::now();
            self.decoder.gather_rows(&sources)?;
            self.stats.gather_time += clock.elapsed();
            self.stats.num_moved_rows += num_moved as u64;
        }
        Ok(())
    }

    fn settle(&mut self, ticket: u64, draw: u32, captions: Vec<Caption>) {
        self.finished.extend(self.images.settle(ticket, draw, captions, self.rules, self.text));
    }

    fn not_finite(&self, ticket: u64, num_tokens: usize) -> GenerationError {
        GenerationError::NotFinite { index: self.images.request(ticket).index, num_tokens }
    }
}
