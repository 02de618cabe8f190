//! Nouns by what one can do with them.

/// Things that a person can carry, mend, sell or lose.
pub(crate) const THINGS: &str = "
bell basket ladder mirror candle knife/knives kettle hammer chair table drawer
box bottle cup plate bowl spoon jar barrel bucket rope net hook chain key lock
clock watch/watches compass map book notebook pencil ribbon button glove coat
cloak hat boot shoe scarf/scarves belt shirt apron blanket pillow quilt carpet
curtain lamp lantern stove pot pan tray jug flask sack bag trunk chest crate
cart wagon wheel saddle harness bridle whip plough spade rake hoe sickle axe saw
chisel plane file vice anvil needle-case thimble
spindle loom shuttle bobbin frame brush/brushes easel canvas portrait
photograph postcard parcel envelope stamp seal coin purse scale weight ruler
telescope microscope prism lens magnet battery wire bulb flute drum fiddle
whistle horn piano harp puppet doll kite marble-bag spinning-top mask crown
ring bracelet necklace brooch comb razor sponge towel basin bathtub broom mop
dustpan shelf/shelves cupboard cabinet desk stool bench cradle bed hammock tent
stick cane umbrella parasol fan vase statue tile brick plank nail screw hinge
bolt pulley crank lever gear oar paddle anchor sail mast rudder buoy trap cage
beehive trough pail churn sieve mortar pestle funnel ladle corkscrew tablecloth
napkin teapot saucer tumbler decanter inkwell blotter typewriter printing-block
magnifying-glass weather-vane doorknob keyhole-plate windowpane coat-hanger
walking-stick penknife/penknives toolbox wheelbarrow stepladder rain-barrel
clothes-line signpost milestone flagpole";

/// Sites: what one may stand beside, behind or in front of.
pub(crate) const SITES: &str = "
harbour mill orchard bridge chapel tower market square garden courtyard gate
wall lighthouse quarry barn stable granary forge bakery tannery brewery inn
tavern library school hospital station bank post-office theatre museum
observatory workshop warehouse cellar attic kitchen parlour staircase corridor
balcony terrace veranda greenhouse well fountain pond canal weir lock-house dam
reservoir aqueduct ferry-landing pier jetty boathouse shipyard cottage
farmhouse manor castle abbey monastery cemetery crossroads/crossroads milepost
toll-house customs-house town-hall guildhall schoolyard playground meadow
pasture vineyard hedge ditch/ditches lane footpath towpath ridge hill valley
cliff cave beach/beaches dune marsh/marshes wood clearing waterfall spring
glade hut shed kiln smithy sawmill foundry ropewalk dovecote windmill
signal-box waiting-room reading-room ballroom stage printing-house dispensary
bell-tower bandstand arcade";

/// People by what they do.
pub(crate) const ROLES: &str = "
weaver miller baker carpenter mason potter tailor cobbler joiner cooper
wheelwright glazier printer bookbinder clerk notary magistrate mayor teacher
pupil librarian archivist surveyor engineer mechanic fitter plumber
watchmaker lamplighter postman/postmen ferryman/ferrymen fisherman/fishermen
sailor captain pilot lighthouse-keeper shepherd farmer gardener forester
beekeeper brewer cook innkeeper waiter porter driver conductor signalman/signalmen
nurse doctor surgeon midwife/midwives apothecary chemist astronomer botanist
geographer traveller pilgrim merchant pedlar shopkeeper auctioneer grocer
butcher dyer tanner saddler locksmith stonecutter roofer painter sculptor
musician singer dancer actor poet novelist editor reporter translator judge
lawyer widow orphan stranger neighbour guest visitor lodger apprentice foreman/foremen
caretaker night-watchman/night-watchmen bell-ringer rope-maker net-maker
glass-blower candle-maker paper-maker basket-maker charcoal-burner tax-collector
stationmaster schoolmaster governess/governesses housekeeper seamstress/seamstresses";

/// Parts of machines.
pub(crate) const PARTS: &str = "
valve piston boiler turbine pump gasket bearing flywheel crankshaft axle
gearbox governor condenser regulator gauge manifold cylinder flange coupling
clutch/clutches brake rotor stator winding transformer relay switch/switches
fuse circuit breaker sensor amplifier antenna receiver transmitter motor
conveyor hoist crane winch/winches lathe drill press/presses furnace burner
heat-exchanger filter strainer nozzle injector carburettor throttle governor-arm
camshaft rocker spring-plate damper truss/trusses girder rivet pier-foot
expansion-joint sluice culvert spillway penstock intake outfall pressure-vessel
pipe duct tank hopper chute feeder mixer separator thermostat timer";

/// Animals, all of them outside the needle names.
pub(crate) const BEASTS: &str = "
goat mule hen dog horse sheep/sheep goose/geese crow cow pig donkey pony lamb
calf/calves duck pigeon cat kitten rabbit mouse/mice bee moth snail frog ox/oxen
rooster terrier sparrow";

/// What grows.
pub(crate) const PLANTS: &str = "
apple pear plum cherry/cherries quince fig walnut chestnut willow birch/birches
oak elm lime-tree poplar hawthorn elder bramble rose lily/lilies tulip daisy/daisies
poppy/poppies foxglove marigold pansy/pansies snowdrop nettle thistle fern
cabbage turnip onion leek bean pea carrot lettuce/lettuces radish/radishes
pumpkin gooseberry/gooseberries currant sunflower herb vine cutting seedling
sapling";

/// What is written.
pub(crate) const PAPERS: &str = "
letter note diary/diaries ledger receipt invoice contract deed will certificate
permit passport ticket timetable pamphlet newspaper almanac catalogue inventory/inventories
report memorandum/memoranda drawing blueprint sketch/sketches chart poem play
essay lecture sermon recipe list label petition decree verdict testimony/testimonies
telegram register logbook manuscript chapter footnote index/indexes";

/// Relations of a person.
pub(crate) const KIN: &str = "
sister brother mother father aunt uncle cousin grandmother grandfather daughter
son nephew niece friend partner rival employer assistant godmother landlord
landlady/landladies teacher tenant colleague";

/// What floats or rolls.
pub(crate) const VESSELS: &str = "
schooner barge ferry/ferries trawler steamer rowing-boat raft canoe sloop tug
dinghy/dinghies lifeboat freighter yacht punt cutter fishing-smack houseboat
coal-barge mail-boat";

/// What is played or sung.
pub(crate) const TUNES: &str = "
song waltz/waltzes hymn ballad march/marches lullaby/lullabies reel jig sonata
overture prelude chorus/choruses round carol dirge melody/melodies serenade
quartet duet fugue";

/// Materials and goods that are not counted.
pub(crate) const MASSES: &str = "
salt flour wool cotton linen silk hemp leather timber charcoal coal peat iron
steel brass tin lead clay sand gravel lime plaster cement glass paper ink wax
tallow oil tar rope-yarn thread cloth felt canvas-cloth soap honey sugar butter
cheese milk cream bread oatmeal barley wheat rye oats rice malt hops cider ale
wine vinegar tea coffee pepper mustard ginger cinnamon nutmeg tobacco hay straw
manure seed firewood kindling bacon mutton beef smoked_fish dried_fruit
candle-wick varnish turpentine glue chalk slate";

/// Abstract nouns.
pub(crate) const ABSTRACTS: &str = "
patience courage doubt hope grief memory silence kindness pride anger curiosity
boredom envy mercy justice luck fortune wisdom folly honour shame trust
suspicion loyalty freedom habit duty ambition modesty caution haste leisure
solitude company friendship marriage childhood age youth sleep hunger thirst
comfort weariness relief regret gratitude generosity thrift debt wealth poverty
fame rumour gossip tradition change progress order chaos accuracy precision
beauty truth harmony rhythm distance absence learning
arithmetic obedience punctuality hospitality imagination experience reason
temperance endurance";

/// Natural things that come and go, all used with `the`.
pub(crate) const NATURE: &str = "
wind rain mist frost tide light dusk snow thunder heat cold fog drizzle hail
dew moonlight sunlight daylight darkness shadow smoke dust drought storm breeze
current flood thaw haze cloud evening morning twilight ice quiet stillness";

/// Units, for quantities of a material.
pub(crate) const MEASURES: &str = "
sack barrel crate bale bundle jar cartload basket bushel pound bucket tin box
chest parcel roll sheaf/sheaves gallon handful load";

/// What is eaten.
pub(crate) const FOODS: &str = "
bread butter cheese bacon mutton beef ham smoked_fish dried_fruit oatmeal honey
barley_soup cabbage_soup pea_soup gingerbread porridge rice_pudding apple_cake
cold_pie stewed_plums baked_onions salted_butter rye_bread goat's_cheese jam
pancakes dumplings";

/// What is drunk.
pub(crate) const DRINKS: &str = "
cider ale wine tea coffee milk water buttermilk barley_water cocoa beer mead
plum_brandy ginger_beer";

/// What others feel at an event.
pub(crate) const MOODS: &str = "
delight surprise regret relief annoyance amusement sorrow astonishment
disappointment satisfaction embarrassment alarm envy shame confusion pride";

/// What fits into a pocket or a hand.
pub(crate) const SMALL: &str = "
knife/knives spoon key button ribbon glove pencil compass watch/watches stamp
coin purse whistle flute comb ring thimble candle postcard envelope bell hook
nail screw penknife/penknives magnifying-glass lens bottle flask cup brush/brushes
marble ticket folded_map hair-pin cork handkerchief";

/// What surveyors carry.
pub(crate) const INSTRUMENTS: &str = "
compass telescope theodolite level quadrant sextant chain plumb-line measuring-rod
barometer plane-table protractor field-book spyglass alidade tripod chronometer";
