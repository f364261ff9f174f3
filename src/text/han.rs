//! Which characters are Chinese, and which make words that need spaces.

/// A Chinese ideograph, by the blocks that BERT's tokenizer splits into single characters.
pub fn is_han(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF
        | 0x3400..=0x4DBF
        | 0x2_0000..=0x2_A6DF
        | 0x2_A700..=0x2_B73F
        | 0x2_B740..=0x2_B81F
        | 0x2_B820..=0x2_CEAF
        | 0xF900..=0xFAFF
        | 0x2_F800..=0x2_FA1F)
}

/// Written without spaces around it: ideographs, kana, bopomofo, CJK punctuation, and full-width forms.
pub fn is_wide(c: char) -> bool {
    is_han(c) || matches!(u32::from(c), 0x2E80..=0x312F | 0x3190..=0x33FF | 0xFE30..=0xFE4F | 0xFF00..=0xFFEF)
}

/// Part of a word or number of a script that puts spaces between words: Latin, digits, Cyrillic, Hangul and so on.
pub fn is_spaced_word(c: char) -> bool {
    c.is_alphanumeric() && !is_wide(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_fall_into_the_right_class() {
        assert!("狗㐀𠀀豈".chars().all(is_han));
        assert!(!"a1，。かｃ".chars().any(is_han));
        assert!("狗，。「」かカｃ１".chars().all(is_wide));
        assert!(!"a1,. é가".chars().any(is_wide));
        assert!("a1éж가".chars().all(is_spaced_word));
        assert!(!"狗か１，, -".chars().any(is_spaced_word));
    }
}
