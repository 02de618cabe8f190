//! Adjectives, adverbs and the small closed lists.

pub(crate) const ADJ_THING: &str = "
old new small large heavy light plain ornate broken cracked mended rusty dusty
clean dirty smooth rough narrow wide round square hollow solid fragile sturdy
cheap costly precious worthless familiar strange useful useless faded painted
varnished carved woven wooden iron brass leather woollen paper glass earthen
borrowed stolen forgotten missing spare second-hand unfinished handmade foreign
local ancient modern elegant clumsy crooked straight bent dented scratched
polished tarnished worn torn patched stained empty full half-empty locked open
sealed wet dry damp warm cold pale dark bright shiny dull soft hard stiff loose
tight long short thick thin flat curved tall low enormous tiny little ordinary
odd ugly beautiful lovely curious excellent poor fine coarse simple intricate
delicate noisy silent reliable faithful unlucky inherited folding portable
travelling numbered labelled nameless gaudy humble uneven ill-fitting";

pub(crate) const ADJ_SITE: &str = "
old new quiet deserted crowded ruined half-ruined abandoned busy distant nearby
lonely shaded sunny windy flooded overgrown whitewashed tiled thatched stone
brick timber narrow wide steep low tall crumbling restored empty locked open
famous forgotten neglected well-kept private public northern southern eastern
western upper lower ancient modern muddy frozen snowbound draughty dim bright
spacious cramped sleepy respectable shabby handsome unfinished ivy-covered
moss-grown lamplit";

pub(crate) const ADJ_PERSON: &str = "
old young elderly tall short stout thin pale tired cheerful gloomy patient
impatient stubborn gentle stern shy talkative silent honest cunning careful
careless generous thrifty proud modest clever simple curious absent-minded
forgetful nervous calm brave timid lame short-sighted deaf grey-haired
red-haired bearded well-dressed ragged barefoot sunburnt retired travelling
unemployed newly-married learned practical superstitious kind-hearted
quick-tempered soft-spoken sleepy hungry industrious idle polite";

pub(crate) const ADJ_MACHINE: &str = "
main auxiliary spare upper lower inner outer left-hand right-hand front rear
worn new original replacement cracked oversized undersized welded riveted cast
forged hydraulic pneumatic electric mechanical manual automatic primary
secondary intermediate upstream downstream faulty leaking seized overhauled
temporary experimental standard insulated adjustable fixed floating noisy
overloaded misaligned lubricated";

pub(crate) const ADJ_NATURE: &str = "
thin heavy pale grey cold warm early late sudden slow bitter gentle steady faint
dense damp dry low endless brief strange familiar fierce patient
uncertain silvery-white sour-smelling salt-laden clear dull unseasonable
northerly southerly";

pub(crate) const ADJ_BEAST: &str = "
old young lame stubborn gentle black white brown spotted hungry quiet nervous
restless greedy half-blind shaggy thin fat sleek obedient bad-tempered tame
half-trained prize-winning underfed long-legged";

pub(crate) const ADJ_FEELING: &str = "
happy sad tired content uneasy ashamed grateful puzzled proud anxious hopeful
lonely relieved bored astonished angry calm certain doubtful homesick ill
restless sleepy curious jealous weary thoughtful frightened delighted
disappointed indifferent embarrassed";

pub(crate) const ADV_MANNER: &str = "
slowly carefully quietly gladly sadly patiently gently firmly calmly wearily
cheerfully politely awkwardly cautiously eagerly reluctantly silently secretly
openly simply neatly roughly hastily thoroughly precisely gravely
proudly modestly absently thoughtfully stubbornly suddenly gradually plainly
faithfully skilfully clumsily solemnly drily warmly coldly anxiously";

pub(crate) const ADV_MOTION: &str = "
slowly quickly silently steadily wearily hurriedly alone together northward
southward eastward westward uphill downhill homeward on_foot by_moonlight
without_a_word in_the_rain at_a_steady_pace in_good_spirits with_some_difficulty";

pub(crate) const FREQUENCY: &str = "
often seldom sometimes always never usually rarely occasionally generally hardly_ever
now_and_then";

pub(crate) const SEASONS: &str = "spring summer autumn winter harvest midsummer midwinter";

pub(crate) const MONTHS: &str = "
January February March April June July August September October November
December";

pub(crate) const DAYS: &str = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday";

pub(crate) const NUMBERS: &str = "
two three four five six seven eight nine ten eleven twelve thirteen fifteen
twenty thirty forty fifty sixty a_hundred";

pub(crate) const ORDINALS: &str = "
first second third fourth fifth sixth seventh eighth ninth tenth eleventh
twelfth last";

pub(crate) const PREPOSITIONS: &str = "
beside near behind beyond below above opposite not_far_from close_to
in_front_of within_sight_of just_past";

pub(crate) const COLOURS: &str =
    "red white green grey blue black brown yellow pink dark_blue dark_green pale_yellow rust-brown";

pub(crate) const STUFFS: &str = "
brass iron oak pine ash walnut clay stone glass wicker leather linen
canvas wool paper tin steel slate bone willow horn";
