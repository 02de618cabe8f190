//! Names of people and the pieces that places are named from.

pub(crate) const WOMEN: &str = "
Ada Agnes Alma Anna Beatrice Berta Brigid Cecily Clara Cora Dagny Delia Dora
Edith Elena Elsa Emma Erika Esther Eva Fanny Flora Frieda Greta Hanna Harriet
Helga Hilda Ida Ines Ingrid Irma Jana Johanna Judith Karin Katya Lena Lydia
Magda Maren Margit Marta Mathilda Mina Miriam Nadia Nelly Nora Olga Petra
Rebecca Renata Rosalind Ruth Selma Signe Sofia Susanna Tamar Thea Tilda Ursula
Vera Wanda Winifred Yvonne Zelda";

pub(crate) const MEN: &str = "
Aaron Adam Albert Alfred Anders Anton Arthur Axel Benedict Boris Bruno Caspar
Conrad Cyril Daniel David Edgar Edmund Emil Erik Ernest Felix Franz Frederick
Georg Gilbert Gregor Gustav Harald Henrik Hugo Isaac Ivan Jakob Joachim Jonas
Josef Julius Karl Klaus Lars Leo Leopold Ludwig Magnus Martin Matthias Maurice
Nathan Nikolai Oscar Osip Otto Paul Pavel Peter Philip Ralph Rudolf Samuel
Sigmund Simon Stefan Theodor Thomas Tobias Ulrich Victor Walter Wilfred Yuri";

pub(crate) const SURNAMES: &str = "
Abbott Adler Alder Ames Andersen Barlow Becker Bellamy Bergmann Birkett Blom
Brandt Brenner Caldwell Carver Clement Corbett Dahl Denham Dorner Duncan
Eastman Ekberg Ellery Falk Farrow Fenner Fielding Forster Garrick Gauss
Gerhardt Granger Haas Hallam Harker Haverly Hedlund Holm Hooper Ivers Jansen
Jarrett Keller Kendrick Kessel Kirby Kovac Lambert Langley Larkin Lindgren
Loring Lund Madsen Marlow Mercer Merrill Moller Nash Nordin Norris Novak Ober
Osborne Palmer Parrish Pelham Perrin Petrov Quill Ramsey Reiner Rosen Rowley
Sandberg Sawyer Schiller Selby Sorensen Stanton Strand Tanner Thorne Tolliver
Ulmer Vance Varga Voss Wade Warner Weller Wexford Whitlock Winter Wirth Yates
Zander";

pub(crate) const PLACE_STARTS: &str = "
Ald Ash Bar Bex Birch Black Bren Brook Cald Car Clay Cold Corn Dun East Elm Ever
Fair Fen Gar Glen Hal Har Hay Hazel Hol Kel Kings Lang Lin Long Mar Mel Mid Nor
Oak Old Pen Rad Red Ros Sand Sel Shel Stan Stone Sut Tam Thorn Tor Ul Wal Wend
West Whit Win Wood Yar";

pub(crate) const PLACE_ENDS: &str = "
wick ford ton ham bury ley field worth bridge mouth stead dale hurst combe well
minster by thorpe burn gate holt haven mere cross";

/// Shapes of the names of rivers, heights and moors; `#` is the name's stem.
pub(crate) const FEATURE_FORMS: &[&str] = &[
    "the River #",
    "the # Pass",
    "# Moor",
    "# Fell",
    "Lake #",
    "the # Marsh",
    "the # Canal",
    "# Forest",
    "# Head",
    "Mount #",
];
