package TallyFormatter;

# prove's own report, and in the file that TA_TALLY names one line
# "passed failed skipped" for scripts/test to add up.  A file that breaks off
# or plans otherwise than it ran counts as a failure of its own, a file that
# skips all its tests as one that is skipped.

use strict;
use warnings;

use parent 'TAP::Formatter::File';

sub summary
{
	my ($self, $aggregate, $interrupted) = @_;
	my ($passed, $failed, $skipped) = (0, 0, 0);

	$self->SUPER::summary($aggregate, $interrupted);

	for my $parser ($aggregate->parsers)
	{
		my $skips = () = $parser->skipped;
		my $bad = () = $parser->failed;

		if (defined $parser->skip_all)
		{
			$skipped++;
			next;
		}
		$passed += $parser->passed - $skips;
		$skipped += $skips;
		$failed += $bad;
		$failed++ if !$bad && $parser->has_problems;
	}

	open my $tally, '>>', $ENV{TA_TALLY} or die "cannot write $ENV{TA_TALLY}: $!";
	print $tally "$passed $failed $skipped\n";
	close $tally;
}

1;
