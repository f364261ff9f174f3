use foldhash::HashMap;

/// Gives each distinct token a number, in order of first appearance.
#[derive(Default)]
pub struct Interner {
    ids: HashMap<String, u32>,
    tokens: Vec<String>,
}

impl Interner {
    /// The id of a token; the same token has the same id for as long as the interner lives.
    pub fn id(&mut self, token: &str) -> u32 {
        if let Some(&id) = self.ids.get(token) {
            return id;
        }
        // The last id is kept free: n-gram keys add one to each.
        let id = u32::try_from(self.tokens.len()).ok().filter(|&id| id < u32::MAX);
        let id = id.expect("four billion distinct tokens do not fit in memory as strings");
        self.ids.insert(token.into(), id);
        self.tokens.push(token.into());
        id
    }

    /// Ids of a token sequence.
    pub fn ids<T: AsRef<str>>(&mut self, tokens: impl IntoIterator<Item = T>) -> Vec<u32> {
        tokens.into_iter().map(|token| self.id(token.as_ref())).collect()
    }

    /// Ids of a token sequence without taking new tokens in: those that are not known get ids of their own from the greatest downwards, which
    /// mean something in this sequence alone.
    pub fn known_ids<T: AsRef<str>>(&self, tokens: impl IntoIterator<Item = T>) -> Vec<u32> {
        let mut unknown: Vec<String> = Vec::new();
        let id = |token: T| match self.ids.get(token.as_ref()) {
            Some(&id) => id,
            None => {
                let at = unknown.iter().position(|other| other == token.as_ref()).unwrap_or_else(|| {
                    unknown.push(token.as_ref().into());
                    unknown.len() - 1
                });
                u32::MAX - 1 - at as u32
            }
        };
        tokens.into_iter().map(id).collect()
    }

    /// All tokens, in the order of their ids.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The token of an id that this interner gave.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(usize::try_from(id).ok()?).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_tokens_share_an_id() {
        let mut interner = Interner::default();
        assert_eq!(interner.ids(["a", "狗", "a"]), [0, 1, 0]);
        assert_eq!(interner.ids(["狗", "b"]), [1, 2]);
        assert_eq!((interner.token(1), interner.token(3)), (Some("狗"), None));
        assert_eq!(interner.known_ids(["x", "狗", "y", "x"]), [u32::MAX - 1, 1, u32::MAX - 2, u32::MAX - 1]);
        assert_eq!(interner.token(3), None);
    }
}
