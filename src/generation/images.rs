//! The images under way: which captions each still waits for, and which samples must be drawn again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use super::Strategy;
use super::caption::Caption;
use super::constraints::Rules;
use super::generator::{FinishedImage, Request};

/// Names what a distinct caption is; without it, captions differ where their token ids do.
pub(super) type CaptionText = Box<dyn Fn(&[u32]) -> String + Send>;

/// Images from their request until all their captions are finished.
#[derive(Default)]
pub(super) struct Images {
    under_way: BTreeMap<u64, Image>,
    /// Not started, in list order.
    fresh: VecDeque<u64>,
    /// To be drawn again, in list order.
    again: BTreeSet<u64>,
    next_ticket: u64,
}

struct Image {
    request: Request,
    /// By the number of their draw.
    captions: Vec<(u32, Caption)>,
    /// Searches that have not finished.
    num_open: usize,
    /// Searches that were started, or are about to be.
    num_searches: u32,
}

/// An image whose prefix is to be run, and the searches that start from it.
pub(super) struct Start {
    pub ticket: u64,
    pub draws: Range<u32>,
}

impl Images {
    pub fn add(&mut self, request: Request, num_searches: usize) {
        let image = Image { request, captions: Vec::new(), num_open: num_searches, num_searches: num_searches as u32 };
        self.under_way.insert(self.next_ticket, image);
        self.fresh.push_back(self.next_ticket);
        self.next_ticket += 1;
    }

    /// Images that wait for their prefix to be run.
    pub fn num_waiting(&self) -> usize {
        self.fresh.len() + self.again.len()
    }

    /// The next `n` images that wait, those to be drawn again first.
    pub fn take(&mut self, n: usize) -> Vec<Start> {
        let mut starts = Vec::with_capacity(n);
        while starts.len() < n {
            let Some(ticket) = self.again.pop_first().or_else(|| self.fresh.pop_front()) else { break };
            let image = &self.under_way[&ticket];
            starts.push(Start { ticket, draws: image.num_searches - image.num_open as u32..image.num_searches });
        }
        starts
    }

    pub fn request(&self, ticket: u64) -> &Request {
        &self.under_way[&ticket].request
    }

    /// Takes the captions of a finished search; returns the image if they were its last.
    pub fn settle(
        &mut self,
        ticket: u64,
        draw: u32,
        captions: Vec<Caption>,
        rules: &Rules,
        text: Option<&CaptionText>,
    ) -> Option<FinishedImage> {
        let image = self.under_way.get_mut(&ticket).expect("an image is under way until its last search has finished");
        image.captions.extend(captions.into_iter().map(|caption| (draw, caption)));
        image.num_open -= 1;
        if image.num_open > 0 {
            return None;
        }
        image.captions.sort_by_key(|&(draw, _)| draw);
        if let Strategy::Sample(sampling) = &rules.settings.strategy
            && sampling.distinct
        {
            image.drop_repeats(text);
            // At most as many more as were asked for. Which ones count depends on the order of the draws alone.
            let num_captions = rules.settings.num_captions;
            let missing = num_captions - image.captions.len();
            let num_again = missing.min(2 * num_captions - image.num_searches as usize);
            if num_again > 0 {
                image.num_open = num_again;
                image.num_searches += num_again as u32;
                self.again.insert(ticket);
                return None;
            }
        }
        let image = self.under_way.remove(&ticket)?;
        let captions = image.captions.into_iter().map(|(_, caption)| caption).collect();
        Some(FinishedImage { index: image.request.index, captions })
    }
}

impl Image {
    /// Keeps the first of equal captions.
    fn drop_repeats(&mut self, text: Option<&CaptionText>) {
        match text {
            Some(text) => {
                let mut seen = BTreeSet::new();
                self.captions.retain(|(_, caption)| seen.insert(text(&caption.token_ids)));
            }
            None => {
                let mut seen = BTreeSet::new();
                self.captions.retain(|(_, caption)| seen.insert(caption.token_ids.clone()));
            }
        }
    }
}
